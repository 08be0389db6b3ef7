// What is asked with every question: instructions and sampling. Kept in this browser.

const FIELDS = { temperature: Number, top_p: Number, max_tokens: Number, seed: Number };

const form = () => document.getElementById("settings-form");

function read() {
  return JSON.parse(localStorage.getItem("settings") ?? "{}");
}

/** Fills the form with what is kept, and keeps what is changed. */
export function start() {
  for (const [name, value] of Object.entries(read())) {
    const field = form().elements[name];
    if (field?.type === "checkbox") field.checked = value;
    else if (field) field.value = value;
  }
  form().addEventListener("input", () => {
    const values = Object.fromEntries(new FormData(form()));
    keep({ ...values, thinking: form().elements.thinking.checked });
  });
  form().addEventListener("reset", () => localStorage.removeItem("settings"));
}

function keep(changes) {
  localStorage.setItem("settings", JSON.stringify({ ...read(), ...changes }));
}

/** The id of the voice to speak in; empty for the model's own. */
export const voice = () => read().voice ?? "";
export const setVoice = (id) => id !== voice() && keep({ voice: id });

/** Whether answers are to be spoken. */
export const speaks = () => Boolean(read().speaks);
export const setSpeaks = (on) => keep({ speaks: on });

/** The system message, or none. */
export function instructions() {
  const text = read().instructions?.trim();
  return text ? [{ role: "system", content: text }] : [];
}

/** What a live session is started with, of what was filled in. */
export function live() {
  const kept = read();
  const fields = {};
  for (const name of ["temperature", "top_p", "seed"]) {
    if (kept[name]) fields.sampling = { ...fields.sampling, [name]: FIELDS[name](kept[name]) };
  }
  if (kept.instructions?.trim()) fields.instructions = kept.instructions.trim();
  if (kept.voice) fields.voice = kept.voice;
  if (kept.listen_bias) fields.listen_bias = Number(kept.listen_bias);
  return fields;
}

/** Fields of a request: those that were filled in; greedy where no temperature is. */
export function sampling() {
  const kept = read();
  const fields = { temperature: 0 };
  for (const [name, convert] of Object.entries(FIELDS)) {
    if (kept[name]) fields[name] = convert(kept[name]);
  }
  if (kept.thinking) fields.chat_template_kwargs = { enable_thinking: true };
  return fields;
}
