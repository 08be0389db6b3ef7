// A conversation on the page: its questions and answers as elements.

import { drawBoxes, fit, link } from "./boxes.js";
import { action, at, make } from "./elements.js";
import { Markdown } from "./markdown.js";
import { show } from "./media.js";
import { Spoken } from "./spoken.js";

const log = at("log");

function copy(text, button) {
  navigator.clipboard.writeText(text).then(() => (button.textContent = "Copied"));
}

/** Shows a question { text, media }; edit() is called to ask it in other words. */
export function addQuestion({ text, media }, edit) {
  const item = make("li", "question");
  if (media.length) {
    const row = make("div", "media");
    for (const one of media) {
      const piece = make("div", "piece");
      const frame = make("div", one.kind === "image" ? "picture" : "");
      const shown = show(one);
      if (one.kind === "image") shown.onload = () => fit(frame, shown);
      frame.append(shown);
      piece.append(frame);
      row.append(piece);
    }
    item.append(row);
  }
  const said = make("div", "said");
  const actions = make("div", "actions");
  actions.append(action("Edit", edit));
  said.append(actions);
  if (text) said.append(make("p", "", text));
  item.append(said);
  log.append(item);
}

/** An answer that grows; `retry` is called to have another one. */
export class Answer {
  #item = make("li", "answer");
  #reasoning = make("details", "reasoning");
  #thoughts = make("p");
  #body = make("div", "text");
  #footer = make("footer");
  #actions = make("div", "actions");
  #markdown = new Markdown(this.#body);
  #drawing = 0;
  #spoken = null;
  text = "";
  thoughts = "";

  constructor(retry) {
    this.#reasoning.append(make("summary", "", "Thinking"), this.#thoughts);
    this.#reasoning.hidden = true;
    this.#actions.append(action("Try again", retry));
    // Browsers give pages without TLS no clipboard.
    if (navigator.clipboard) this.#actions.prepend(action("Copy", (button) => copy(this.text, button)));
    this.#item.append(this.#reasoning, this.#body, this.#footer, this.#actions);
    this.#item.ariaBusy = "true";
    log.append(this.#item);
    this.scroll();
  }

  scroll() {
    this.#item.scrollIntoView({ block: "end" });
  }

  /** Adds text, and what was thought before it. It is drawn once a frame, however many pieces come. */
  add(text, thoughts = "") {
    this.text += text;
    this.thoughts += thoughts;
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  /** Adds sound (16-bit samples), which is played as it comes if it is to be aloud. */
  sound(samples, aloud = true) {
    if (!this.#spoken) {
      this.#spoken = new Spoken();
      this.#body.after(this.#spoken.element);
    }
    this.#spoken.add(samples, aloud);
  }

  /** All its sound, or undefined. */
  get samples() {
    return this.#spoken?.samples;
  }

  #draw() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = 0;
    // Someone who scrolled up to read is left there.
    const following = window.innerHeight + window.scrollY > document.body.scrollHeight - 120;
    this.#reasoning.hidden = !this.thoughts;
    this.#thoughts.textContent = this.thoughts;
    this.#markdown.show(this.text);
    if (following) this.scroll();
  }

  /** Ends it: a line of figures, or of what went wrong. */
  end(figures, failure) {
    this.#draw();
    this.#spoken?.end();
    this.#footer.textContent = figures;
    if (failure) this.#footer.append(make("span", "failure", failure));
    this.#item.ariaBusy = "false";
    const picture = [...log.querySelectorAll(".picture")].pop();
    if (picture && this.#item.isConnected) link(this.#body.querySelectorAll("mark"), drawBoxes(picture, this.text));
    this.scroll();
  }
}
