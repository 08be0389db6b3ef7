// Elements, made and found.

export const at = (id) => document.getElementById(id);

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** A small button of text that sends no form. */
export function action(name, act) {
  const button = make("button", "action", name);
  button.type = "button";
  button.onclick = () => act(button);
  return button;
}

/** Seconds as 0:07. */
export const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** Milliseconds as 189 ms or 1.2 s. */
export const span = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${Math.round(ms / 100) / 10} s`);
