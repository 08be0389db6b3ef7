// The dialog of earlier conversations.

import { at, make } from "./elements.js";
import * as history from "./history.js";

function entry(one, open) {
  const item = make("li");
  const choose = make("button", "choice", one.title);
  const remove = make("button", "remove", "✕");
  choose.type = remove.type = "button"; // they do not send the dialog's form
  choose.append(make("small", "", new Date(one.changed).toLocaleString()));
  choose.onclick = () => {
    at("history-dialog").close();
    open({ id: one.id, turns: one.turns });
  };
  remove.ariaLabel = `Delete ${one.title}`;
  remove.onclick = async () => {
    await history.forget(one.id);
    item.remove();
  };
  item.append(choose, remove);
  return item;
}

/** Shows them; open(conversation) is called with the one that is chosen. */
export async function showKept(open) {
  const kept = await history.all();
  at("kept").replaceChildren(...kept.map((one) => entry(one, open)));
  at("none-kept").hidden = kept.length > 0;
  at("history-dialog").showModal();
}

/** Keeps a conversation; without room for it, or in a private window, the list is taken away. */
export async function keep(conversation) {
  const [{ text, media }] = conversation.turns;
  const title = text || media.map((one) => one.name || one.kind).join(", ");
  try {
    await history.keep({ ...conversation, title, changed: Date.now() });
  } catch {
    at("history").hidden = true;
  }
}
