// The server's API as the page needs it: its state, its model, one streamed answer.

const headers = () => {
  const key = sessionStorage.getItem("key");
  return key ? { authorization: `Bearer ${key}` } : {};
};

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  return new ApiError(response.status, body?.error?.message ?? `the server answered ${response.status}`);
}

/** fetch, which throws ApiError where there is no answer. */
async function reach(address, options) {
  return fetch(address, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the server cannot be reached");
  });
}

/** "ok", "loading", "restarting" …, or "unreachable". */
export async function health() {
  const response = await fetch("health").catch(() => null);
  return response ? (await response.json().catch(() => null))?.status ?? "unreachable" : "unreachable";
}

export async function model() {
  const response = await reach("v1/models", { headers: headers() });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data[0];
}

/** The voices that the model can speak in: [{ id, name }]. */
export async function voices() {
  const response = await reach("v1/audio/voices", { headers: headers() });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data;
}

/** Makes a voice of a recording (a Blob); consent: what says that the speaker agrees. Returns { id, name }. */
export async function addVoice(name, recording, consent) {
  const body = new FormData();
  body.append("name", name);
  body.append("consent", consent);
  body.append("audio_sample", recording, recording.name || "voice");
  const response = await reach("v1/audio/voices", { method: "POST", headers: headers(), body });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

export async function removeVoice(id) {
  const response = await reach(`v1/audio/voices/${encodeURIComponent(id)}`, { method: "DELETE", headers: headers() });
  if (!response.ok) throw await refusal(response);
}

/** Yields the chunks of one answer as objects; ends with [DONE], throws ApiError, or is aborted by the signal. */
export async function* answer(request, signal) {
  const response = await reach("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let pending = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError(0, "the connection was lost");
    const events = (pending + value).split("\n\n");
    pending = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") return;
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new ApiError(500, chunk.error.message);
      yield chunk;
    }
  }
}

/** A WebSocket of the server. Browsers give it no headers of ours: the key is one of its subprotocols. */
export function socket(path, subprotocol) {
  const address = new URL(path, location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  const key = sessionStorage.getItem("key");
  return new WebSocket(address, key ? [subprotocol, `auth.${key}`] : [subprotocol]);
}
