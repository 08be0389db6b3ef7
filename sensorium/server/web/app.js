// The page: which server and model it talks to, and which of its halves is shown.

import * as api from "./api.js";
import * as chat from "./chat.js";
import { at } from "./elements.js";
import * as live from "./live.js";
import { hush } from "./spoken.js";
import * as voices from "./voices.js";

const TABS = ["chat", "live"];

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
    await greet(await api.model());
  } catch (error) {
    if (error.status !== 401) throw error;
    status.textContent = "needs a key";
    askForKey();
  }
}

/** What the model can do decides what the page offers. */
async function greet({ id, capabilities = [] }) {
  at("status").textContent = id.split("/").pop();
  at("status").title = id;
  at("tabs").hidden = at("bias-field").hidden = !capabilities.includes("duplex");
  if (wanted() === "live") show("live");
  at("speak").hidden = at("voice-field").hidden = !capabilities.includes("speech");
  at("add-voice").hidden = !capabilities.includes("cloning");
  if (!at("speak").hidden) await voices.load();
}

function askForKey() {
  at("login").showModal();
}

at("login").addEventListener("close", () => {
  if (!at("key").value) return;
  sessionStorage.setItem("key", at("key").value);
  connect();
});

// ---- tabs ----

function show(name) {
  if (name === "live") hush();
  else live.leave();
  for (const other of TABS) {
    const tab = at(`tab-${other}`);
    at(other).hidden = other !== name;
    tab.ariaSelected = String(other === name);
    tab.tabIndex = other === name ? 0 : -1;
  }
  document.body.dataset.tab = name;
  window.history.replaceState(null, "", name === "chat" ? location.pathname : `#${name}`);
}

const wanted = () => (location.hash === "#live" && !at("tabs").hidden ? "live" : "chat");
window.addEventListener("hashchange", () => show(wanted()));
for (const name of TABS) at(`tab-${name}`).onclick = () => show(name);
at("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const name = TABS[(TABS.findIndex((one) => !at(one).hidden) + step + TABS.length) % TABS.length];
  show(name);
  at(`tab-${name}`).focus();
});

at("settings").onclick = () => at("settings-dialog").showModal();
takeKey();
chat.start(askForKey);
live.start();
voices.start();
connect();
