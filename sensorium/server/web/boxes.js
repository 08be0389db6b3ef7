// Boxes in an answer: <ref>name</ref><box>x1 y1 x2 y2</box>, in thousandths of the picture's sides.

import { make } from "./elements.js";

export const BOX = /(?:<ref>(?<name>[^<]*)<\/ref>\s*)?<box>\s*(?<sides>\d+(?:[\s,]+\d+){3})\s*<\/box>/;

const MOST = { width: 352, height: 288 };
const TONES = 8; // as many as style.css has
const pictures = new WeakMap(); // frame -> { names: Map(name -> [box]), legend }

/** Gives a frame exactly the size of the picture in it, so that shares of the frame are shares of the picture. */
export function fit(frame, picture) {
  const scale = Math.min(1, MOST.width / picture.naturalWidth, MOST.height / picture.naturalHeight);
  frame.style.width = `${Math.round(picture.naturalWidth * scale)}px`;
}

/** The boxes of a text, in its order: { name, sides: [left, top, right, bottom] in percent }. One name may have many. */
export function readBoxes(text) {
  let [name, end] = ["", 0];
  return [...text.matchAll(new RegExp(BOX, "g"))].map(({ 0: all, index, groups }) => {
    const goesOn = !text.slice(end, index).trim();
    name = groups.name?.trim() ?? (goesOn ? name : "");
    end = index + all.length;
    const [x1, y1, x2, y2] = groups.sides.split(/[\s,]+/).map((side) => Math.min(100, side / 10));
    return { name, sides: [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)] };
  });
}

function draw({ name, sides: [left, top, right, bottom] }, tone) {
  const box = make("span", `box tone-${tone}`);
  Object.assign(box.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
  if (name) box.append(make("b", top < 9 ? "inside" : "", name));
  return box;
}

/** A line of the legend: its button hides a name's boxes and shows them again. */
function legendEntry(name, tone, boxes) {
  const item = make("li");
  const button = make("button", `tone-${tone}`, boxes.length > 1 ? `${name || "box"} × ${boxes.length}` : name || "box");
  button.type = "button";
  button.ariaPressed = "true";
  button.title = "Show or hide";
  button.onclick = () => {
    const shown = button.ariaPressed !== "true";
    button.ariaPressed = String(shown);
    for (const box of boxes) box.hidden = !shown;
  };
  linkAll([button], boxes);
  item.append(button);
  return item;
}

/** Draws the boxes of a text over the frame of a picture, and the frame's legend; returns them, in the text's order. */
export function drawBoxes(frame, text) {
  const found = readBoxes(text);
  if (!found.length) return [];
  if (!pictures.has(frame)) {
    const legend = make("ul", "legend");
    legend.ariaLabel = "Boxes on the picture";
    frame.after(legend);
    pictures.set(frame, { names: new Map(), legend });
  }
  const { names, legend } = pictures.get(frame);
  const drawn = found.map((one) => {
    if (!names.has(one.name)) names.set(one.name, []);
    const box = draw(one, [...names.keys()].indexOf(one.name) % TONES);
    names.get(one.name).push(box);
    return box;
  });
  frame.append(...drawn);
  legend.replaceChildren(...[...names].map(([name, boxes], place) => legendEntry(name, place % TONES, boxes)));
  return drawn;
}

/** Pointing at or focusing any of these marks all of those, and itself. */
function linkAll(these, those) {
  for (const one of these) {
    for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
      one.addEventListener(event, () => [one, ...those].forEach((other) => other.classList.toggle("shown", on)));
    }
  }
}

/** Pointing at a name in the text shows its box on the picture, and the other way round. */
export function link(marks, boxes) {
  marks.forEach((mark, place) => {
    const box = boxes[place];
    mark.classList.add(...[...box.classList].filter((name) => name.startsWith("tone-")));
    linkAll([mark], [box]);
    linkAll([box], [mark]);
  });
}
