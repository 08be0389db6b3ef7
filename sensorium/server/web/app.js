// The page: attachments and a question in, a streamed answer out.

import * as api from "./api.js";
import { hasCamera, takePicture } from "./camera.js";
import { makeExample } from "./examples.js";
import * as history from "./history.js";
import { canRecord, record, show, toMedia } from "./media.js";
import * as settings from "./settings.js";
import { addQuestion, Answer, make } from "./turns.js";

const at = (id) => document.getElementById(id);
const [composer, question, send, log] = ["composer", "question", "send", "log"].map(at);

let conversation = begin(); // { id, turns: [{ text, media, answer, thoughts, figures }] }
let attached = []; // media of the next question
let asking = null; // AbortController of the answer that is coming
let recording = null;

function notice(text) {
  at("notice").hidden = !text;
  at("notice").textContent = text ?? "";
}

// ---- server ----

function takeKey() {
  // `sensorium serve` prints an address with the key behind the #, which browsers never send.
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (!key) return;
  sessionStorage.setItem("key", key);
  window.history.replaceState(null, "", location.pathname);
}

async function connect() {
  const state = await api.health();
  const status = at("status");
  status.dataset.state = state === "ok" ? "ok" : state === "loading" ? "loading" : "failed";
  if (state !== "ok") {
    status.textContent = state === "loading" ? "loading the model…" : `not available (${state})`;
    setTimeout(connect, 1000);
    return;
  }
  try {
    const { id } = await api.model();
    status.textContent = id.split("/").pop();
    status.title = id;
  } catch (error) {
    if (error.status !== 401) throw error;
    status.textContent = "needs a key";
    at("login").showModal();
  }
}

at("login").addEventListener("close", () => {
  if (!at("key").value) return;
  sessionStorage.setItem("key", at("key").value);
  connect();
});

// ---- attachments ----

async function attach(files) {
  notice();
  for (const file of files) {
    try {
      attached.push(await toMedia(file));
    } catch (error) {
      notice(error.message);
    }
  }
  showAttached();
  question.focus();
}

function showAttached() {
  at("attachments").replaceChildren(
    ...attached.map((media) => {
      const item = make("li");
      const remove = make("button", "", "✕");
      remove.type = "button";
      remove.ariaLabel = `Remove ${media.name || media.kind}`;
      remove.onclick = () => {
        attached = attached.filter((other) => other !== media);
        showAttached();
      };
      item.append(show(media), remove);
      return item;
    }),
  );
}

at("attach").onclick = () => at("files").click();
at("files").onchange = (event) => {
  attach([...event.target.files]);
  event.target.value = "";
};
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    attach([...event.clipboardData.files]);
  }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.toggle("dropping", event.dataTransfer.types.includes("Files"));
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  attach([...event.dataTransfer.files]);
});

at("record").hidden = !canRecord();
at("record").onclick = async () => {
  try {
    if (recording) {
      const finished = recording;
      recording = null;
      await attach([await finished.stop()]);
    } else {
      recording = await record();
    }
  } catch {
    notice("The microphone is not available.");
  }
  at("record").ariaPressed = String(Boolean(recording));
};

at("camera").hidden = !hasCamera();
at("camera").onclick = async () => {
  try {
    const picture = await takePicture(at("camera-dialog"));
    if (picture) await attach([picture]);
  } catch {
    notice("The camera is not available.");
  }
};

// ---- asking ----

/** The conversation as the API takes it. */
function messages() {
  const asked = conversation.turns.flatMap(({ text, media, answer }) => {
    const content = [...media.map((one) => one.part), ...(text ? [{ type: "text", text }] : [])];
    return [{ role: "user", content }, ...(answer === undefined ? [] : [{ role: "assistant", content: answer }])];
  });
  return [...settings.instructions(), ...asked];
}

function describe(usage, start, first, end) {
  const tokens = usage.completion_tokens;
  const rate = tokens > 1 ? ` · ${Math.round((1000 * (tokens - 1)) / Math.max(1, end - first))} tokens/s` : "";
  const wait = ((first - start) / 1000).toFixed(2);
  return `${tokens} tokens${rate} · first after ${wait} s · ${usage.prompt_tokens} in the prompt`;
}

/** Streams the answer to the conversation into an element; returns the line of figures. */
async function streamInto(answer, signal) {
  const start = performance.now();
  let first = 0;
  let figures = "";
  for await (const chunk of api.answer({ messages: messages(), ...settings.sampling() }, signal)) {
    const delta = chunk.choices[0]?.delta;
    if (delta?.content || delta?.reasoning) {
      first ||= performance.now();
      answer.add(delta.content ?? "", delta.reasoning ?? "");
    }
    if (chunk.usage) figures = describe(chunk.usage, start, first || start, performance.now());
  }
  return figures;
}

async function ask(turn) {
  notice();
  at("welcome").hidden = true;
  at("new").hidden = false;
  const place = conversation.turns.push(turn) - 1;
  const here = conversation;
  addQuestion(turn, () => edit(place));
  const answer = new Answer(() => again(place));
  asking = new AbortController();
  send.classList.add("stop");
  send.ariaLabel = send.title = "Stop";
  try {
    turn.figures = await streamInto(answer, asking.signal);
    turn.answer = answer.text;
    answer.end(turn.figures);
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (stopped && answer.text) turn.answer = answer.text;
    else here.turns.pop(); // what was not answered would only repeat its fault
    answer.end(stopped ? "stopped" : "", stopped ? "" : error.message);
    if (error.status === 401) at("login").showModal();
  }
  turn.thoughts = answer.thoughts;
  asking = null;
  send.classList.remove("stop");
  send.ariaLabel = send.title = "Send";
  if (here.turns.length) await keep(here);
}

/** Everything from a question on is taken back; the question is asked once more, or first changed. */
function takeBack(place) {
  const [turn] = conversation.turns.splice(place);
  showConversation();
  return turn;
}

function again(place) {
  if (asking || place >= conversation.turns.length) return;
  const { text, media } = takeBack(place);
  ask({ text, media });
}

function edit(place) {
  if (asking || place >= conversation.turns.length) return;
  const { text, media } = takeBack(place);
  question.value = text;
  attached = media;
  showAttached();
  question.focus();
}

composer.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (asking) {
    asking.abort();
    return;
  }
  if (recording) await at("record").onclick();
  const text = question.value.trim();
  const media = attached;
  if (!text && !media.length) return;
  question.value = "";
  attached = [];
  showAttached();
  ask({ text, media });
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !asking) {
    event.preventDefault();
    composer.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") asking?.abort();
});

// ---- conversations ----

function begin() {
  return { id: `${Date.now()}-${Math.random()}`, turns: [] };
}

function showConversation() {
  log.replaceChildren();
  conversation.turns.forEach((turn, place) => {
    addQuestion(turn, () => edit(place));
    const answer = new Answer(() => again(place));
    answer.add(turn.answer, turn.thoughts);
    answer.end(turn.figures ?? "stopped");
  });
  at("welcome").hidden = conversation.turns.length > 0;
  at("new").hidden = !conversation.turns.length;
}

function open(next) {
  asking?.abort();
  conversation = next;
  showConversation();
  question.focus();
}

async function keep(kept) {
  const title = kept.turns[0].text || kept.turns[0].media.map((one) => one.name || one.kind).join(", ");
  try {
    await history.keep({ ...kept, title, changed: Date.now() });
  } catch {
    at("history").hidden = true; // a private window, or no room: the conversation goes on without
  }
}

async function showHistory() {
  const kept = await history.all();
  at("kept").replaceChildren(
    ...kept.map((one) => {
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
    }),
  );
  at("none-kept").hidden = kept.length > 0;
  at("history-dialog").showModal();
}

at("history").onclick = () => showHistory().catch(() => notice("This browser keeps no conversations in this window."));
at("settings").onclick = () => at("settings-dialog").showModal();
at("new").onclick = () => open(begin());

at("examples").addEventListener("click", async (event) => {
  const name = event.target.closest("[data-example]")?.dataset.example;
  if (!name || asking) return;
  const { file, question: text } = await makeExample(name);
  ask({ text, media: [await toMedia(file)] });
});

settings.start();
takeKey();
connect();
if (matchMedia("(pointer: fine)").matches) question.focus();
