// The conversation: a question and what is attached to it in, a streamed answer out.

import * as api from "./api.js";
import * as attachments from "./attach.js";
import { at } from "./elements.js";
import { makeExample } from "./examples.js";
import { keep, showKept } from "./kept.js";
import { toMedia } from "./media.js";
import * as settings from "./settings.js";
import { hush, ready } from "./spoken.js";
import { addQuestion, Answer } from "./turns.js";
import { fromBase64 } from "./wave.js";

const [composer, question, send, log] = ["composer", "question", "send", "log"].map(at);

let conversation = begin(); // { id, turns: [{ text, media, answer, thoughts, figures }] }
let asking = null; // AbortController of the answer that is coming
let askForKey = () => {};

function notice(text) {
  at("notice").hidden = !text;
  at("notice").textContent = text ?? "";
}

/** The conversation as the API takes it. */
function messages() {
  const asked = conversation.turns.flatMap(({ text, media, answer }) => {
    const content = [...media.map((one) => one.part), ...(text ? [{ type: "text", text }] : [])];
    return [{ role: "user", content }, ...(answer === undefined ? [] : [{ role: "assistant", content: answer }])];
  });
  return [...settings.instructions(), ...asked];
}

const LEAST_MS = 50; // tokens that came in less came together, which says nothing of how fast they were made
const after = (start, end) => `${((end - start) / 1000).toFixed(2)} s`;

/** The line of figures below an answer; times in ms. */
function describe(usage, { start, first, sound, end }) {
  const tokens = usage.completion_tokens - (usage.completion_tokens_details?.audio_tokens ?? 0);
  const measurable = tokens >= 8 && !sound && end - first >= LEAST_MS;
  const rate = measurable ? ` · ${Math.round((1000 * (tokens - 1)) / (end - first))} tokens/s` : "";
  const heard = sound ? ` · sound after ${after(start, sound)}` : "";
  return `${tokens} tokens${rate} · first after ${after(start, first || end)}${heard} · ${usage.prompt_tokens} in the prompt`;
}

/** Asks for sound too, where that is wanted. */
function speech() {
  if (at("speak").hidden || !settings.speaks()) return {};
  const audio = { format: "pcm16" };
  if (settings.voice()) audio.voice = settings.voice();
  return { modalities: ["text", "audio"], audio };
}

/** Streams the answer to the conversation into an element; returns the line of figures. */
async function streamInto(answer, signal) {
  const times = { start: performance.now(), first: 0, sound: 0, end: 0 };
  let figures = "";
  for await (const chunk of api.answer({ messages: messages(), ...settings.sampling(), ...speech() }, signal)) {
    const { content, reasoning, audio } = chunk.choices[0]?.delta ?? {};
    const text = content || audio?.transcript;
    if (text || reasoning) {
      times.first ||= performance.now();
      answer.add(text ?? "", reasoning ?? "");
    }
    if (audio?.data) {
      times.sound ||= performance.now();
      answer.sound(fromBase64(audio.data));
    }
    times.end = performance.now();
    if (chunk.usage) figures = describe(chunk.usage, times);
  }
  return figures;
}

async function ask(turn) {
  notice();
  hush();
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
    if (speech().audio) await ready();
    turn.figures = await streamInto(answer, asking.signal);
    turn.answer = answer.text;
    answer.end(turn.figures);
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (stopped && answer.text) turn.answer = answer.text;
    else here.turns.pop(); // what was not answered would only repeat its fault
    answer.end(stopped ? "stopped" : "", stopped ? "" : error.message);
    if (error.status === 401) askForKey();
  }
  turn.thoughts = answer.thoughts;
  turn.sound = answer.samples;
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
  attachments.put(media);
  question.focus();
}

composer.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (asking) {
    asking.abort();
    return;
  }
  const media = await attachments.take();
  const text = question.value.trim();
  if (!text && !media.length) return;
  question.value = "";
  ask({ text, media });
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !asking) {
    event.preventDefault();
    composer.requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || at("chat").hidden) return;
  asking?.abort();
  hush();
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
    if (turn.sound) answer.sound(turn.sound, false);
    answer.end(turn.figures ?? "stopped");
  });
  at("welcome").hidden = conversation.turns.length > 0;
  at("new").hidden = !conversation.turns.length;
}

function open(next) {
  asking?.abort();
  hush();
  conversation = next;
  showConversation();
  question.focus();
}

at("history").onclick = () => showKept(open).catch(() => notice("This browser keeps no conversations in this window."));
at("new").onclick = () => open(begin());

at("examples").addEventListener("click", async (event) => {
  const name = event.target.closest("[data-example]")?.dataset.example;
  if (!name || asking) return;
  const { file, question: text } = await makeExample(name);
  ask({ text, media: [await toMedia(file)] });
});

function showSpeaks() {
  at("speak").ariaPressed = String(settings.speaks());
  at("speak").title = settings.speaks() ? "Answers are spoken" : "Speak the answers";
}

at("speak").onclick = () => {
  settings.setSpeaks(!settings.speaks());
  showSpeaks();
  if (!settings.speaks()) hush();
};

/** Readies it; login() asks for a key. */
export function start(login) {
  askForKey = login;
  attachments.start(notice);
  settings.start();
  showSpeaks();
  at("settings-form").addEventListener("reset", showSpeaks);
  if (matchMedia("(pointer: fine)").matches) question.focus();
}
