// What each unit took, stage upon stage, against the second that it may take.

import { colour, onColours } from "./colours.js";
import { make, span } from "./elements.js";

const MOST = 60; // units that are drawn
const BUDGET_MS = 1000;
const STAGES = { wait: "waiting, seeing, hearing", prefill: "reading and deciding", decode: "finding words", speech: "making sound" };
const EDGE = { left: 52, right: 2, top: 8, bottom: 4 };

/** The stages of a unit in ms, each beginning where the last one ended. */
const parts = ({ ms }) => Object.keys(STAGES).map((stage) => [stage, ms[stage] ?? 0]);

/** A round number at or above a value: 1, 2 or 5 times a power of ten. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((times) => times * power).find((round) => round >= value);
}

/** The least of the values that so large a share does not exceed. */
const quantile = (sorted, share) => sorted[Math.ceil(share * sorted.length) - 1];

export class Graph {
  #canvas;
  #figures;
  #units = [];
  #all = { count: 0, late: 0 };

  /** figures: the element that says the numbers; legend: a list for the names of the stages. */
  constructor(canvas, figures, legend) {
    this.#canvas = canvas;
    this.#figures = figures;
    legend.replaceChildren(...Object.entries(STAGES).map(([stage, name]) => make("li", `stage-${stage}`, name)));
    legend.append(make("li", "stage-late", "late"));
    onColours(() => this.redraw(), canvas);
    new ResizeObserver(() => this.redraw()).observe(canvas);
  }

  add(unit) {
    this.#units.push(unit);
    if (this.#units.length > MOST) this.#units.shift();
    this.#all.count += 1;
    if (unit.behind_ms > 0) this.#all.late += 1;
    this.#tell(unit);
    this.redraw();
  }

  clear() {
    this.#units = [];
    this.#all = { count: 0, late: 0 };
    this.#figures.textContent = "";
    this.redraw();
  }

  #tell({ ms, behind_ms, kv }) {
    const sorted = this.#units.map((unit) => unit.ms.total).sort((one, other) => one - other);
    const behind = behind_ms > 0 ? `, ${span(behind_ms)} late` : "";
    this.#figures.textContent = [
      `last ${span(ms.total)}${behind}`,
      `median ${span(quantile(sorted, 0.5))}`,
      `95 % within ${span(quantile(sorted, 0.95))}`,
      `late ${this.#all.late} of ${this.#all.count}`,
      `context ${Math.round((100 * kv.used) / kv.limit)} % full`,
    ].join(" · ");
  }

  redraw() {
    const [width, height] = [this.#canvas.clientWidth, this.#canvas.clientHeight];
    if (!width) return;
    this.#canvas.width = Math.round(width * devicePixelRatio);
    this.#canvas.height = Math.round(height * devicePixelRatio);
    const pen = this.#canvas.getContext("2d");
    pen.scale(devicePixelRatio, devicePixelRatio);
    const most = ceiling(Math.max(50, ...this.#units.map(({ ms }) => ms.total)));
    const y = (ms) => height - EDGE.bottom - (ms / most) * (height - EDGE.top - EDGE.bottom);
    this.#scale(pen, width, most, y);
    const step = (width - EDGE.left - EDGE.right) / MOST;
    this.#units.forEach((unit, place) => this.#bar(pen, unit, EDGE.left + place * step + 0.15 * step, 0.7 * step, y));
  }

  #scale(pen, width, most, y) {
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const ms of [0, most / 2, most]) {
      pen.fillStyle = colour("line");
      pen.fillRect(EDGE.left, y(ms), width - EDGE.left - EDGE.right, 1);
      pen.fillStyle = colour("faint");
      pen.fillText(ms === 0 ? "0" : span(ms), EDGE.left - 6, y(ms));
    }
    if (most <= BUDGET_MS) return;
    pen.fillStyle = colour("alarm");
    for (let x = EDGE.left; x < width - EDGE.right; x += 8) pen.fillRect(x, y(BUDGET_MS), 4, 1);
  }

  #bar(pen, unit, x, width, y) {
    let from = 0;
    for (const [stage, ms] of parts(unit)) {
      pen.fillStyle = colour(`stage-${stage}`);
      pen.fillRect(x, y(from + ms), width, y(from) - y(from + ms));
      from += ms;
    }
    if (unit.behind_ms > 0) {
      pen.fillStyle = colour("alarm");
      pen.fillRect(x, y(unit.ms.total), width, Math.max(2, y(BUDGET_MS) - y(unit.ms.total)));
    }
  }
}
