// The live tab: a conversation in full duplex, from its beginning to its end.

import { Captions } from "./captions.js";
import { Duplex } from "./duplex.js";
import { at } from "./elements.js";
import { Frames } from "./frames.js";
import { Graph } from "./graph.js";
import { Heard } from "./heard.js";
import { Microphone } from "./microphone.js";
import { Recording } from "./recording.js";
import * as settings from "./settings.js";
import { RATE, Speaker } from "./speaker.js";
import { Stage } from "./stage.js";
import { Timeline } from "./timeline.js";
import { peaks } from "./wave.js";

const RATE_IN = 16000;
const PLAYED_EVERY = 3; // reports of the speaker, which come ten times a second
const MOST_STARVED = 12000; // samples missing from its voice before that is told: half a second
const BARS = 20; // of a second that was heard

const stage = new Stage(at("live"));
const captions = new Captions(at("captions"));
const timeline = new Timeline(at("timeline"));
const graph = new Graph(at("graph"), at("latency-figures"), at("graph-legend"));
const frames = new Frames(at("seen"));

let talk = null; // what belongs to the session that runs

/** One session with its devices. */
class Talk {
  #microphone = new Microphone();
  #speaker = new Speaker();
  #heard = new Heard(RATE_IN);
  #said = new Heard(RATE);
  #recording = new Recording(RATE_IN);
  #duplex;
  #given = 0; // position of the end of the sound that the speaker was given
  #played = 0;
  #reports = 0;
  #starved = 0;
  #late = false; // whether the last unit was
  #awake = null;
  muted = false;
  paused = false;

  async open() {
    stage.show("asking");
    await this.#microphone.open((samples) => this.#listen(samples));
    this.#microphone.ongone = () => this.fail("The microphone was taken away.");
    await this.#speaker.open((report) => this.#report(report));
    if (at("facing").value) await look();
    this.#duplex = new Duplex({ audio: { in: RATE_IN, out: RATE }, ...settings.live() }, {
      state: (name, detail) => this.#change(name, detail),
      unit: (unit) => this.#unit(unit),
      text: ({ turn, delta }) => captions.add(turn, delta),
      turn: (turn) => this.#turn(turn),
      notice: (notice) => stage.note(notice),
      error: ({ message }) => stage.problem(message),
      sound: (sound) => this.#say(sound),
      silence: () => this.#hush(),
    });
    this.#duplex.open();
    // Phones would go to sleep over a talk. Some browsers know no such wish, or refuse it.
    this.#awake = await navigator.wakeLock?.request("screen").catch(() => null);
  }

  #change(name, detail) {
    if (name === "ended" || name === "failed") return finish(name, detail.message);
    if (name === "ready" && !detail.resumed) stage.begin(detail);
    stage.show(name === "ready" ? (this.paused ? "paused" : "listening") : name, detail);
  }

  #listen(samples) {
    const position = this.#duplex?.sound(samples) ?? null;
    if (position === null) return;
    stage.level("heard", this.muted ? 0 : peaks(samples, 1)[0]);
    this.#heard.sound(position, samples);
    this.#recording.heard(samples);
    // By the clock of the sound, so that each unit has one picture, and has it in time.
    const middle = position - (position % RATE_IN) + RATE_IN / 2;
    if (frames.on && position <= middle && middle < position + samples.length) this.#see(position);
  }

  async #see(position) {
    const blob = await frames.take();
    const jpeg = await blob?.arrayBuffer();
    if (jpeg && this.#duplex.picture(jpeg)) this.#heard.picture(position, blob);
  }

  #unit(unit) {
    at("seconds").hidden = at("latency").hidden = false;
    timeline.add(unit, this.#heard.stretch(Math.max(0, unit.in_samples - RATE_IN), unit.in_samples, BARS));
    this.#draw(this.#given); // its voice may have come before
    graph.add(unit);
    this.#late = unit.behind_ms > 0;
    stage.tick(unit);
  }

  #turn({ event, id }) {
    if (event === "start") captions.begin(id);
    else captions.end(id, event === "cancelled");
    if (event === "cancelled") timeline.cut(id);
    stage.turn(event === "start");
  }

  #say({ position, samples, last }) {
    if (samples.length) {
      this.#speaker.play(samples);
      this.#recording.said(samples);
      this.#said.sound(position, samples);
      this.#draw(position + samples.length);
    }
    this.#given = position + samples.length;
    if (last) this.#speaker.end();
  }

  #draw(position) {
    timeline.voice(position, (start, end) => this.#said.stretch(start, end, BARS).heights);
  }

  #hush() {
    this.#speaker.flush();
    this.#recording.silence();
  }

  #report({ waiting, level, starved }) {
    stage.level("said", level);
    stage.sounding(waiting > 0);
    this.#reports += 1;
    // A turn may hold its breath; only a server that is behind breaks it up.
    if (!this.#late) this.#starved = starved;
    if (starved - this.#starved > MOST_STARVED) {
      this.#starved = starved;
      stage.note({ code: "starved" });
    }
    const played = Math.max(this.#played, this.#given - waiting);
    if (played === this.#played || this.#reports % PLAYED_EVERY) return;
    this.#played = played;
    this.#duplex?.played(played);
  }

  interrupt() {
    this.#duplex?.interrupt();
  }

  type(text) {
    this.#duplex?.type(text);
    captions.typed(text);
  }

  mute(muted) {
    this.muted = muted;
    this.#microphone.mute(muted);
    stage.muted(muted);
  }

  pause(paused) {
    this.paused = paused;
    this.#duplex?.pause(paused);
    if (paused) this.#speaker.pause();
    else this.#speaker.resume();
    stage.show(paused ? "paused" : "listening");
  }

  fail(message) {
    this.#duplex?.stop();
    finish("failed", message);
  }

  stop() {
    if (this.#duplex) this.#duplex.stop();
    else finish("ended", "");
  }

  /** Ends all of it; returns the recording. */
  close() {
    this.#awake?.release();
    this.#microphone.close();
    this.#speaker.close();
    frames.close();
    return this.#recording;
  }
}

/** In words, why a device could not be had. */
function excuse(error, device) {
  if (!navigator.mediaDevices) return `Browsers give pages a ${device} only over https, or on this very machine.`;
  if (error.name === "NotAllowedError") return `This page may not use the ${device}. Allow it in the browser’s address bar, then try again.`;
  if (error.name === "NotFoundError") return `There is no ${device}.`;
  if (error.name === "NotReadableError") return `Another program has the ${device}.`;
  return `The ${device} is not available: ${error.message}`;
}

/** Opens the camera that is chosen, or closes it. */
async function look() {
  const facing = at("facing").value;
  try {
    if (facing) {
      await frames.open(facing);
      frames.ongone = unsee;
    } else frames.close();
  } catch (error) {
    stage.problem(excuse(error, facing === "screen" ? "screen" : "camera"));
    return unsee();
  }
  stage.seeing(frames.on);
}

function unsee() {
  at("facing").value = "";
  frames.close();
  stage.seeing(false);
}

async function begin() {
  const here = (talk = new Talk());
  captions.clear();
  timeline.clear();
  graph.clear();
  at("seconds").hidden = at("latency").hidden = true;
  offer(null);
  stage.problem("");
  try {
    await here.open();
  } catch (error) {
    if (talk === here) finish("failed", excuse(error, "microphone"));
  }
  if (talk !== here) here.close(); // it was ended while the browser asked
}

/** Offers a recording to be heard and kept; null takes the offer back. */
function offer(recording) {
  const worth = Boolean(recording?.seconds);
  at("recorded").hidden = !worth;
  const [player, save] = at("recorded").children;
  URL.revokeObjectURL(player.src);
  if (worth) player.src = save.href = URL.createObjectURL(recording.save());
  else player.removeAttribute("src");
}

function finish(state, message) {
  offer(talk?.close());
  talk = null;
  captions.end();
  stage.seeing(false);
  stage.show(state);
  stage.problem(message);
}

/** Leaving the tab ends the session: a microphone that nobody sees must not stay open. */
export function leave() {
  talk?.stop();
}

export function start() {
  at("begin").onclick = () => (talk ? talk.stop() : begin());
  at("interrupt").onclick = () => talk?.interrupt();
  at("mute").onclick = () => talk?.mute(!talk.muted);
  at("pause").onclick = () => talk?.pause(!talk.paused);
  at("facing").onchange = () => talk && look();
  at("screen").hidden = !navigator.mediaDevices?.getDisplayMedia;
  at("live-bar").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = at("typed").value.trim();
    if (!text || !talk) return;
    talk.type(text);
    at("typed").value = "";
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !at("live").hidden && !event.defaultPrevented) talk?.interrupt();
  });
  addEventListener("pagehide", leave);
}
