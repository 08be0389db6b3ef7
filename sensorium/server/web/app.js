// The page: attachments and a question in, a streamed answer out.

import * as api from "./api.js";
import { drawBoxes, fit } from "./boxes.js";
import { makeExample } from "./examples.js";
import { canRecord, record, show, toMedia } from "./media.js";

const at = (id) => document.getElementById(id);
const [composer, question, send, log] = ["composer", "question", "send", "log"].map(at);

let messages = []; // the conversation, as the API takes it
let attached = []; // media of the next question
let asking = null; // AbortController of the answer that is coming
let recording = null;

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

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
  history.replaceState(null, "", location.pathname);
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

// ---- asking ----

function addQuestion(text, media) {
  const item = make("li", "question");
  if (media.length) {
    const row = make("div", "media");
    for (const one of media) {
      const frame = make("div", one.kind === "image" ? "picture" : "");
      const shown = show(one);
      if (one.kind === "image") shown.onload = () => fit(frame, shown);
      frame.append(shown);
      row.append(frame);
    }
    item.append(row);
  }
  if (text) item.append(make("p", "", text));
  log.append(item);
}

function addAnswer() {
  const item = make("li", "answer");
  item.ariaBusy = "true";
  item.append(make("p"), make("footer"));
  log.append(item);
  return item;
}

/** Streams the answer to a conversation into an element; returns its text. */
async function streamInto(item, conversation, signal) {
  const [paragraph, footer] = item.children;
  const start = performance.now();
  let first = 0;
  for await (const chunk of api.answer(conversation, signal)) {
    const text = chunk.choices[0]?.delta.content;
    if (text) {
      first ||= performance.now();
      paragraph.append(text);
      item.scrollIntoView({ block: "end" });
    }
    if (chunk.usage) footer.textContent = describe(chunk.usage, start, first || start, performance.now());
  }
  return paragraph.textContent;
}

function describe(usage, start, first, end) {
  const tokens = usage.completion_tokens;
  const rate = tokens > 1 ? ` · ${Math.round((1000 * (tokens - 1)) / Math.max(1, end - first))} tokens/s` : "";
  const wait = ((first - start) / 1000).toFixed(2);
  return `${tokens} tokens${rate} · first after ${wait} s · ${usage.prompt_tokens} in the prompt`;
}

async function ask(text, media) {
  notice();
  at("welcome").hidden = true;
  at("new").hidden = false;
  addQuestion(text, media);
  const parts = media.map((one) => one.part);
  const conversation = messages;
  conversation.push({ role: "user", content: text ? [...parts, { type: "text", text }] : parts });
  const item = addAnswer();
  item.scrollIntoView({ block: "end" });
  asking = new AbortController();
  send.classList.add("stop");
  send.ariaLabel = send.title = "Stop";
  try {
    const answer = await streamInto(item, conversation, asking.signal);
    conversation.push({ role: "assistant", content: answer });
    const pictures = log.querySelectorAll(".picture");
    if (pictures.length) drawBoxes([...pictures].pop(), answer);
  } catch (error) {
    const stopped = error.name === "AbortError";
    item.lastChild.append(make("span", stopped ? "" : "failure", stopped ? "stopped" : error.message));
    const partial = item.firstChild.textContent;
    if (stopped && partial) conversation.push({ role: "assistant", content: partial });
    else conversation.pop(); // what was not answered would only repeat its fault
    if (error.status === 401) at("login").showModal();
  }
  item.ariaBusy = "false";
  item.scrollIntoView({ block: "end" });
  asking = null;
  send.classList.remove("stop");
  send.ariaLabel = send.title = "Send";
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
  ask(text, media);
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

at("new").onclick = () => {
  asking?.abort();
  messages = [];
  log.replaceChildren();
  at("welcome").hidden = false;
  at("new").hidden = true;
  question.focus();
};

at("examples").addEventListener("click", async (event) => {
  const name = event.target.closest("[data-example]")?.dataset.example;
  if (!name || asking) return;
  const { file, question: text } = await makeExample(name);
  ask(text, [await toMedia(file)]);
});

takeKey();
connect();
if (matchMedia("(pointer: fine)").matches) question.focus();
