// What the model says in a live session, turn by turn, and what was typed to it.

import { make } from "./elements.js";

export class Captions {
  #list;
  #turn = null; // { id, item, text }

  constructor(list) {
    this.#list = list;
  }

  #append(item) {
    const following = window.innerHeight + window.scrollY > document.body.scrollHeight - 120;
    this.#list.append(item);
    if (following) this.#list.scrollTop = this.#list.scrollHeight;
  }

  begin(id) {
    this.end();
    const item = make("li", "");
    item.ariaBusy = "true"; // read out whole, not word by word
    this.#turn = { id, item, text: item.appendChild(make("p")) };
    this.#append(item);
  }

  add(id, delta) {
    if (this.#turn?.id !== id) this.begin(id);
    const { text } = this.#turn;
    text.append(text.textContent ? delta : delta.trimStart());
    this.#list.scrollTop = this.#list.scrollHeight;
  }

  /** Ends a turn, or the one that is open; cut: it was interrupted. */
  end(id = this.#turn?.id, cut = false) {
    if (!this.#turn || this.#turn.id !== id) return;
    const { item, text } = this.#turn;
    this.#turn = null;
    item.ariaBusy = "false";
    if (cut) item.append(make("small", "", "interrupted"));
    if (!text.textContent.trim() && !cut) item.remove();
  }

  typed(text) {
    this.#append(make("li", "typed", text));
  }

  clear() {
    this.#turn = null;
    this.#list.replaceChildren();
  }
}
