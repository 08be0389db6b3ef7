// What the live tab shows of a session's state: words, levels, the camera's picture, and which buttons there are.

import { at, clock } from "./elements.js";

const WORDS = {
  idle: "Ready when you are",
  asking: "Waiting for the microphone…",
  connecting: "Connecting…",
  reconnecting: "Connection lost. Trying again…",
  listening: "Listening",
  speaking: "Speaking",
  paused: "Paused",
  ended: "Ended",
  failed: "Not connected",
};
const OPEN = ["listening", "speaking", "paused", "reconnecting"];
const NOTES = {
  late: "The server is behind: some of what you said was left out.",
  frames_dropped: "The server is behind: some pictures were left out.",
  gap: "Some sound was lost on the way.",
  replay_incomplete: "Some of what it said was lost with the connection.",
  starved: "Its voice came too slowly and was broken up.",
};
const HINTS = {
  idle: "Talk as you would to someone in the room: it hears you all the time, answers while you speak, and sees what the camera sees.",
  asking: "Your browser asks whether this page may listen.",
  queued: "All places are taken. It begins by itself when it is your turn.",
};
const NOTE_MS = 6000;

const ORDER = ["th", "st", "nd", "rd"];
const nth = (place) => `${place}${(place % 100 > 10 && place % 100 < 14) || place % 10 > 3 ? "th" : ORDER[place % 10]}`;

function wait(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return `${Math.round(seconds / 60)} min`;
}

export class Stage {
  #root;
  #state = "idle";
  #limits = null;
  #turn = false;
  #sounding = false;
  #noting = 0;
  #announced = false;

  constructor(root) {
    this.#root = root;
    this.show("idle");
  }

  get #open() {
    return OPEN.includes(this.#state);
  }

  /** Shows a state; detail is what the server said of it. */
  show(state, detail = {}) {
    this.#state = state;
    const words = state === "queued" ? `${nth(detail.position)} in the queue, about ${wait(detail.eta_s)}` : WORDS[state];
    const busy = !["idle", "ended", "failed"].includes(state);
    this.#root.dataset.state = state;
    this.#root.toggleAttribute("data-open", this.#open);
    this.#words(state === "paused" && this.#limits ? `${words}, for ${wait(this.#limits.pause_s)} at most` : words);
    for (const id of ["mute", "pause", "interrupt"]) at(id).hidden = !this.#open;
    for (const id of ["pause", "interrupt", "typed"]) at(id).disabled = state === "reconnecting";
    at("typed").hidden = !this.#open || !this.#limits?.text;
    at("pause").ariaPressed = String(state === "paused");
    at("pause").title = at("pause").ariaLabel = state === "paused" ? "Go on" : "Pause";
    at("begin").textContent = busy ? (this.#open ? "End" : "Cancel") : "Start talking";
    at("live-voice").disabled = busy;
    const blank = at("captions").childElementCount === 0;
    at("live-hint").textContent = HINTS[busy ? state : blank && "idle"] ?? "";
    if (!busy) this.#turn = this.#sounding = false;
    if (!busy || state === "paused") for (const which of ["heard", "said"]) this.level(which, 0);
  }

  /** Turns that come and go are not announced: they are heard. */
  #words(text) {
    at("live-state").textContent = text;
    const routine = this.#state === "speaking" || (this.#state === "listening" && this.#announced);
    this.#announced = ["speaking", "listening"].includes(this.#state);
    if (!routine && at("live-news").textContent !== text) at("live-news").textContent = text;
  }

  begin({ limits, capabilities }) {
    this.#limits = { ...limits, text: capabilities.text };
    at("captions").ariaLive = capabilities.speech ? "off" : "polite"; // no second voice over the model's
    this.tick({ n: -1 });
    this.muted(false);
  }

  /** The clock counts what the model has heard, as the units do. */
  tick({ n }) {
    at("live-clock").textContent = clock(n + 1);
    at("live-clock").hidden = false;
  }

  turn(open) {
    this.#turn = open;
    this.#speaks();
  }

  sounding(on) {
    this.#sounding = on;
    this.#speaks();
  }

  #speaks() {
    const state = this.#turn || this.#sounding ? "speaking" : "listening";
    if (["listening", "speaking"].includes(this.#state) && state !== this.#state) this.show(state);
  }

  /** heard or said, from 0 to 1. */
  level(which, loud) {
    this.#root.style.setProperty(`--${which}`, Math.sqrt(loud).toFixed(3));
  }

  muted(on) {
    at("mute").ariaPressed = String(on);
    at("mute").title = at("mute").ariaLabel = on ? "Unmute the microphone" : "Mute the microphone";
    this.#root.classList.toggle("muted", on);
  }

  seeing(on) {
    at("seen").hidden = !on;
    this.#root.classList.toggle("seeing", on);
  }

  problem(message) {
    clearTimeout(this.#noting);
    at("live-problem").textContent = message;
    at("live-problem").hidden = !message;
    at("live-problem").classList.remove("passing");
  }

  /** Something that is worth a line for a while. */
  note({ code, message }) {
    if (["paused", "resumed", "muted", "unmuted"].includes(code)) return;
    this.problem(NOTES[code] ?? message);
    at("live-problem").classList.add("passing");
    this.#noting = setTimeout(() => this.problem(""), NOTE_MS);
  }
}
