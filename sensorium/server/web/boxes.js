// Boxes in an answer: <ref>name</ref><box>x1 y1 x2 y2</box>, in thousandths of the picture's sides.

export const BOX = /(?:<ref>(?<name>[^<]*)<\/ref>)?<box>(?<sides>\d+ \d+ \d+ \d+)<\/box>/;

const MOST = { width: 352, height: 288 };

/** Gives a frame exactly the size of the picture in it, so that shares of the frame are shares of the picture. */
export function fit(frame, picture) {
  const scale = Math.min(1, MOST.width / picture.naturalWidth, MOST.height / picture.naturalHeight);
  frame.style.width = `${Math.round(picture.naturalWidth * scale)}px`;
}

/** Draws the boxes of a text over an element that shows the picture; returns what was drawn, in the text's order. */
export function drawBoxes(picture, text) {
  return [...text.matchAll(new RegExp(BOX, "g"))].map(({ groups: { name, sides } }) => {
    const [left, top, right, bottom] = sides.split(" ").map((side) => side / 10);
    const box = document.createElement("span");
    Object.assign(box.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    if (name) box.append(Object.assign(document.createElement("b"), { textContent: name }));
    picture.append(box);
    return box;
  });
}

/** Pointing at a name in the text shows its box on the picture, and the other way round. */
export function link(marks, boxes) {
  marks.forEach((mark, place) => {
    const pair = [mark, boxes[place]];
    for (const one of pair) {
      for (const [event, on] of [["pointerenter", true], ["focus", true], ["pointerleave", false], ["blur", false]]) {
        one.addEventListener(event, () => pair.forEach((other) => other.classList.toggle("shown", on)));
      }
    }
  });
}
