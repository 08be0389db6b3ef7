// The sound of an answer: played as it comes, then to be had again and kept.

import { onColours } from "./colours.js";
import { action, clock, make } from "./elements.js";
import { RATE, Speaker } from "./speaker.js";
import { drawPeaks, joined, toWav } from "./wave.js";

const BARS = 80;
const BAR = 0.06 * RATE; // samples in one, of a short sound; longer ones are pressed together
const PLAY = "M8 5.5l10 6.5-10 6.5z";
const STOP = "M7 7h10v10H7z";

let speaker = null; // one for the page: of two answers only one is heard
let playing = null; // the Spoken that is heard

/** Readies the loudspeaker. Browsers want that to begin with a click or a key. */
export async function ready() {
  if (speaker) return speaker.resume();
  speaker = new Speaker();
  await speaker.open(({ waiting }) => playing?.report(waiting));
}

/** Silence, whatever is playing. */
export function hush() {
  playing?.stop();
}

function icon() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.ariaHidden = "true";
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "path"));
  return svg;
}

export class Spoken {
  #pieces = [];
  #length = 0; // samples so far
  #loud = []; // their peaks, BAR by BAR
  #given = 0; // of them, to the speaker, since it plays
  #played = 0;
  #complete = false;
  #canvas = make("canvas");
  #button = make("button", "icon");
  #time = make("small", "");
  element = make("div", "spoken");

  constructor() {
    this.#button.type = "button";
    this.#button.append(icon());
    this.#button.onclick = () => (playing === this ? this.stop() : this.replay());
    this.element.ariaLabel = "The answer as sound";
    this.element.role = "group";
    this.element.append(this.#button, this.#canvas, this.#time);
    onColours(() => this.#draw(), this.element);
    this.#label();
  }

  /** More of it: it is played at once, unless it was stopped or belongs to an earlier conversation. */
  add(samples, aloud = true) {
    if (!this.#length && aloud) this.#take();
    this.#pieces.push(samples);
    this.#measure(samples);
    this.#length += samples.length;
    if (playing === this) this.#give(samples);
    this.#draw();
  }

  /** All of it is there. */
  end() {
    this.#complete = true;
    if (playing === this) speaker.end();
    this.element.append(action("Download", () => this.#save()));
    this.#draw();
  }

  #save() {
    const link = make("a");
    link.href = URL.createObjectURL(toWav(this.samples, RATE));
    link.download = "answer.wav";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000); // some browsers read it later
  }

  get samples() {
    if (this.#pieces.length > 1) this.#pieces = [joined(this.#pieces)];
    return this.#pieces[0] ?? new Int16Array(0);
  }

  #measure(samples) {
    samples.forEach((sample, index) => {
      const bar = Math.floor((this.#length + index) / BAR);
      this.#loud[bar] = Math.max(this.#loud[bar] ?? 0, Math.abs(sample) / 32768);
    });
  }

  #take() {
    playing?.stop();
    playing = this;
    this.#given = this.#played = 0;
    this.#label();
  }

  #give(samples) {
    this.#given += samples.length;
    speaker.play(samples);
  }

  async replay() {
    await ready();
    this.#take();
    this.#give(this.samples);
    if (this.#complete) speaker.end();
  }

  stop() {
    if (playing !== this) return;
    playing = null;
    this.#played = 0;
    speaker.flush();
    this.#label();
    this.#draw();
  }

  report(waiting) {
    this.#played = this.#given - waiting;
    this.#draw();
    if (this.#complete && this.#given === this.#length && !waiting) this.stop();
  }

  #label() {
    const on = playing === this;
    this.#button.ariaLabel = this.#button.title = on ? "Stop the voice" : "Play the answer";
    this.#button.querySelector("path").setAttribute("d", on ? STOP : PLAY);
  }

  #draw() {
    this.#time.textContent = clock((playing === this ? this.#played : this.#length) / RATE);
    if (!this.#canvas.clientWidth || !this.#length) return;
    const heights = Array(BARS).fill(0);
    const pressed = Math.max(1, this.#loud.length / BARS);
    this.#loud.forEach((peak, bar) => {
      const place = Math.floor(bar / pressed);
      heights[place] = Math.max(heights[place], peak);
    });
    drawPeaks(this.#canvas, heights, this.#played / BAR / pressed / BARS, "accent", "heard");
  }
}
