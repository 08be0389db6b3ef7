// The units of a session side by side: what was seen and heard, what the model decided, what it said.

import { onColours } from "./colours.js";
import { clock, make, span } from "./elements.js";
import { drawPeaks } from "./wave.js";

const MOST = 120; // units that are shown

function describe({ n, decision, text, behind_ms, ms }) {
  const did = decision === "listen" ? "listened" : text.trim() ? `said “${text.trim()}”` : "went on speaking";
  return `${clock(n)}: ${did}, ${span(ms.total)}${behind_ms > 0 ? `, ${span(behind_ms)} late` : ""}`;
}

export class Timeline {
  #list;
  #cells = []; // { item, canvas, heights, turn, address, voice }; voice: { canvas, start, end, heights } of what it said
  #made = 0; // samples of its voice until the newest unit
  #following = true; // whether the newest unit is to be in sight

  constructor(list) {
    this.#list = list;
    onColours(() => this.redraw(), list);
    list.addEventListener("scroll", () => {
      this.#following = list.scrollLeft + list.clientWidth > list.scrollWidth - 40;
    });
    new ResizeObserver(() => this.#follow()).observe(list);
  }

  /** unit: the server's message; heights and blob: what was heard and seen in it. */
  add(unit, { heights, blob }) {
    const item = make("li", unit.decision);
    const shown = make("div");
    shown.ariaHidden = "true";
    const canvas = make("canvas");
    const address = blob && URL.createObjectURL(blob);
    const picture = make(blob ? "img" : "span", "frame");
    if (blob) Object.assign(picture, { src: address, alt: "" });
    const voice = { canvas: make("canvas", "voice"), start: this.#made, end: unit.out_samples, heights: [] };
    const speaks = voice.end > voice.start;
    this.#made = voice.end;
    const said = make("p", "", unit.text.trim());
    const took = make("small", unit.behind_ms > 0 ? "late" : "", span(unit.ms.total));
    const head = make("header");
    head.append(make("time", "", clock(unit.n)), took);
    shown.append(head, picture, canvas, make("i"), ...(speaks ? [voice.canvas] : []), said);
    item.append(make("span", "unseen", describe(unit)), shown);
    const last = this.#cells.at(-1);
    if (unit.turn !== null && last?.turn === unit.turn) item.classList.add("goes-on");
    if (unit.text_end) item.classList.add("ends");
    this.#list.append(item);
    this.#cells.push({ item, canvas, heights, turn: unit.turn, address, voice });
    drawPeaks(canvas, heights, 1, "heard", "heard");
    while (this.#cells.length > MOST) this.#forget(this.#cells.shift());
    this.#follow();
  }

  /** More of its voice came, up to `position`: sounds(start, end) gives the bars of a stretch. */
  voice(position, sounds) {
    for (const { voice } of this.#cells.slice(-5)) {
      if (voice.start >= position || voice.end === voice.start || voice.whole) continue;
      voice.heights = sounds(voice.start, voice.end);
      voice.whole = voice.end <= position;
      drawPeaks(voice.canvas, voice.heights, 1, "accent", "accent");
    }
  }

  /** Marks where a turn was cut short. */
  cut(turn) {
    this.#cells.findLast((cell) => cell.turn === turn)?.item.classList.add("cut");
  }

  redraw() {
    for (const { canvas, heights, voice } of this.#cells) {
      drawPeaks(canvas, heights, 1, "heard", "heard");
      drawPeaks(voice.canvas, voice.heights, 1, "accent", "accent");
    }
  }

  clear() {
    this.#cells.splice(0).forEach((cell) => this.#forget(cell));
    this.#made = 0;
    this.#following = true;
  }

  #follow() {
    if (this.#following) this.#list.scrollLeft = this.#list.scrollWidth;
  }

  #forget({ item, address }) {
    item.remove();
    if (address) URL.revokeObjectURL(address);
  }
}
