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
    localStorage.setItem("settings", JSON.stringify({ ...values, thinking: form().elements.thinking.checked }));
  });
  form().addEventListener("reset", () => localStorage.removeItem("settings"));
}

/** The system message, or none. */
export function instructions() {
  const text = read().instructions?.trim();
  return text ? [{ role: "system", content: text }] : [];
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
