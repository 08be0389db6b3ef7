// The style's colours for canvases, which know no custom properties.

const probe = document.createElement("i");
probe.hidden = true;
document.body.append(probe);

let known = new Map();
const listeners = new Map(); // element -> redraw, of those still on the page
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  known = new Map();
  for (const [element, redraw] of listeners) {
    if (element.isConnected) redraw();
    else listeners.delete(element);
  }
});

/** The colour that --name has now, as a canvas takes it. */
export function colour(name) {
  if (!known.has(name)) {
    probe.style.color = `var(--${name})`;
    known.set(name, getComputedStyle(probe).color);
  }
  return known.get(name);
}

/** Calls redraw when the colours have changed, for as long as the element is on the page. */
export function onColours(redraw, element) {
  listeners.set(element, redraw);
}
