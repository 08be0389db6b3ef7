// Boxes in an answer: <ref>name</ref><box>x1 y1 x2 y2</box>, in thousandths of the picture's sides.

const BOX = /(?:<ref>([^<]*)<\/ref>)?<box>(\d+) (\d+) (\d+) (\d+)<\/box>/g;

/** Draws the boxes of a text over an element that shows the picture. */
export function drawBoxes(picture, text) {
  for (const [, name, ...sides] of text.matchAll(BOX)) {
    const [left, top, right, bottom] = sides.map((side) => side / 10);
    const box = document.createElement("span");
    Object.assign(box.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    if (name) box.append(Object.assign(document.createElement("b"), { textContent: name }));
    picture.append(box);
  }
}
