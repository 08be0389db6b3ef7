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
  #cells = []; // { item, canvas, heights, turn, address }

  constructor(list) {
    this.#list = list;
    onColours(() => this.redraw(), list);
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
    const said = make("p", "", unit.text.trim());
    const took = make("small", unit.behind_ms > 0 ? "late" : "", span(unit.ms.total));
    const head = make("header");
    head.append(make("time", "", clock(unit.n)), took);
    shown.append(head, picture, canvas, make("i"), said);
    item.append(make("span", "unseen", describe(unit)), shown);
    const last = this.#cells.at(-1);
    if (unit.turn !== null && last?.turn === unit.turn) item.classList.add("goes-on");
    if (unit.text_end) item.classList.add("ends");
    const following = this.#list.scrollLeft + this.#list.clientWidth > this.#list.scrollWidth - 40;
    this.#list.append(item);
    this.#cells.push({ item, canvas, heights, turn: unit.turn, address });
    drawPeaks(canvas, heights, 1, "heard", "heard");
    while (this.#cells.length > MOST) this.#forget(this.#cells.shift());
    if (following) this.#list.scrollLeft = this.#list.scrollWidth;
  }

  /** Marks where a turn was cut short. */
  cut(turn) {
    this.#cells.findLast((cell) => cell.turn === turn)?.item.classList.add("cut");
  }

  redraw() {
    for (const { canvas, heights } of this.#cells) drawPeaks(canvas, heights, 1, "heard", "heard");
  }

  clear() {
    this.#cells.splice(0).forEach((cell) => this.#forget(cell));
  }

  #forget({ item, address }) {
    item.remove();
    if (address) URL.revokeObjectURL(address);
  }
}
