// Boxes in an answer: <ref>name</ref><box>x1 y1 x2 y2</box>, in thousandths of the picture's sides.

const BOX = /(?:<ref>([^<]*)<\/ref>)?<box>(\d+) (\d+) (\d+) (\d+)<\/box>/g;

const MOST = { width: 352, height: 288 };

/** Gives a frame exactly the size of the picture in it, so that shares of the frame are shares of the picture. */
export function fit(frame, picture) {
  const scale = Math.min(1, MOST.width / picture.naturalWidth, MOST.height / picture.naturalHeight);
  frame.style.width = `${Math.round(picture.naturalWidth * scale)}px`;
}

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
