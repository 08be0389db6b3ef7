// The voices that the model can speak in: choosing one, adding one's own, taking it away again.

import * as api from "./api.js";
import { at, clock, make } from "./elements.js";
import { canRecord, record } from "./media.js";
import * as settings from "./settings.js";

const DEFAULT = "default"; // the model's own, where it has one: what is spoken in when none is named
const LEAST_S = 3;
const MOST_S = 15;
const CONSENT = "Confirmed on the page: the speaker agrees.";

let listed = []; // { id, name }
let clip = null; // the recording that is to become a voice
let recording = null;
let timer = 0;

const selects = () => [at("voice"), at("live-voice")];

function problem(text) {
  at("voice-problem").textContent = text;
  at("voice-problem").hidden = !text;
}

/** Asks the server for its voices, and shows them where one is chosen. */
export async function load() {
  listed = await api.voices();
  const first = listed.some(({ id }) => id === DEFAULT) ? "Default voice" : "Choose a voice";
  const others = listed.filter(({ id }) => id !== DEFAULT);
  for (const select of selects()) {
    select.replaceChildren(new Option(first, ""), ...others.map(({ id, name }) => new Option(name, id)));
    select.hidden = false;
  }
  choose(settings.voice());
}

function choose(id) {
  const known = listed.some((voice) => voice.id === id) ? id : "";
  for (const select of selects()) select.value = known;
  settings.setVoice(known);
  const chosen = listed.find((voice) => voice.id === known);
  at("forget-voice").hidden = !chosen || chosen.id === chosen.name; // a voice of the server's has no other id
}

// ---- one's own ----

function show(file) {
  clip = file;
  const player = make("audio");
  player.controls = true;
  player.src = URL.createObjectURL(file);
  player.ariaLabel = "The recording";
  at("voice-clip").replaceChildren(player);
  problem("");
}

async function toggleRecording() {
  if (recording) return stopRecording();
  try {
    recording = await record();
  } catch {
    return problem("The microphone is not available.");
  }
  const start = performance.now();
  at("record-voice").ariaPressed = "true";
  timer = setInterval(() => {
    const seconds = (performance.now() - start) / 1000;
    at("record-voice").textContent = `Stop (${clock(seconds)} of ${clock(MOST_S)})`;
    if (seconds >= MOST_S - 0.2) stopRecording();
  }, 200);
}

async function stopRecording() {
  clearInterval(timer);
  const finished = recording;
  recording = null;
  at("record-voice").ariaPressed = "false";
  at("record-voice").textContent = "Record";
  if (finished) show(await finished.stop());
}

async function save(event) {
  event.preventDefault();
  await stopRecording();
  if (!clip) return problem(`Record ${LEAST_S} to ${MOST_S} seconds of the voice, or choose a file.`);
  at("save-voice").disabled = true;
  try {
    const { id } = await api.addVoice(at("voice-name").value.trim(), clip, CONSENT);
    await load();
    choose(id);
    at("voice-dialog").close();
  } catch (error) {
    problem(error.message);
  }
  at("save-voice").disabled = false;
}

async function forget() {
  const { id } = listed.find((voice) => voice.id === at("voice").value);
  try {
    await api.removeVoice(id);
    await load();
  } catch (error) {
    at("forget-voice").title = error.message;
  }
  at("voice").focus();
}

function open() {
  clip = null;
  at("voice-clip").replaceChildren();
  at("voice-form").reset();
  problem("");
  at("voice-dialog").showModal();
}

export function start() {
  for (const select of selects()) select.onchange = () => choose(select.value);
  at("add-voice").onclick = open;
  at("forget-voice").onclick = forget;
  at("settings-form").addEventListener("reset", () => choose(""));
  at("record-voice").hidden = !canRecord();
  at("record-voice").onclick = toggleRecording;
  at("choose-voice").onclick = () => at("voice-file").click();
  at("voice-file").onchange = () => at("voice-file").files.length && show(at("voice-file").files[0]);
  at("voice-form").addEventListener("submit", save);
  at("cancel-voice").onclick = () => at("voice-dialog").close();
  at("voice-dialog").addEventListener("close", stopRecording);
}
