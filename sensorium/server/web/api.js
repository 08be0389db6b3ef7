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

/** "ok", "loading", "restarting" …, or "unreachable". */
export async function health() {
  const response = await fetch("health").catch(() => null);
  return response ? (await response.json().catch(() => null))?.status ?? "unreachable" : "unreachable";
}

export async function model() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await refusal(response);
  return (await response.json()).data[0];
}

/** Yields the chunks of one answer as objects; ends with [DONE], throws ApiError, or is aborted by the signal. */
export async function* answer(request, signal) {
  const response = await fetch("v1/chat/completions", {
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
