// node client.mjs FLOW BASE_URL MODEL FOLDER: one flow with the openai SDK; prints what came of it as JSON.
import { createReadStream, readFileSync } from "node:fs";
import { argv } from "node:process";
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { LiveWS } from "openai/resources/live/ws";

const [, , flow, baseURL, model, folder] = argv;
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const CHUNK = 4800;
const TRANSCRIBE = "Transcribe the speech.";

/** A connection whose events are kept; `until` resolves with the first one of a type, from now on. */
class Talk {
  constructor(socket, opened) {
    this.socket = socket;
    this.opened = opened;
    this.events = [];
    this.waiting = [];
    socket.on("event", (event) => {
      this.events.push(event);
      const { type } = event;
      const found = this.waiting.filter((one) => one.type === type);
      this.waiting = this.waiting.filter((one) => one.type !== type);
      for (const one of found) one.resolve(event);
    });
    socket.on("error", (error) => {
      for (const one of this.waiting) one.reject(error);
    });
  }

  until(type) {
    return new Promise((resolve, reject) => this.waiting.push({ type, resolve, reject }));
  }

  send(type, fields) {
    this.socket.send({ type, ...fields });
  }

  say(text) {
    const content = [{ type: "input_text", text }];
    this.send("conversation.item.create", { item: { type: "message", role: "user", content } });
  }

  hear(pcm, type = "input_audio_buffer.append") {
    for (let at = 0; at < pcm.length; at += CHUNK) {
      this.send(type, { audio: pcm.subarray(at, at + CHUNK).toString("base64") });
    }
  }
}

async function realtime(session) {
  const talk = new Talk(new OpenAIRealtimeWS({ model }, client));
  await talk.until("session.created");
  talk.send("session.update", { session: { type: "realtime", ...session } });
  await talk.until("session.updated");
  return talk;
}

async function done(talk) {
  const { response } = await talk.until("response.done");
  return response;
}

function end(talk) {
  talk.socket.close();
  return { events: talk.events };
}

const sound = () => readFileSync(`${folder}/question.pcm`);
const manual = { turn_detection: null };
const writes = { output_modalities: ["text"], instructions: TRANSCRIBE };

const flows = {
  async chat() {
    const messages = [{ role: "user", content: "Good morning!" }];
    const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
    const pieces = [];
    for await (const chunk of await client.chat.completions.create({ model, messages, temperature: 0, stream: true })) {
      pieces.push(chunk.choices[0]?.delta?.content ?? "");
    }
    return { whole: whole.choices[0].message.content, pieces };
  },

  async speech() {
    const said = await client.audio.speech.create({
      model, voice: "alloy", input: "The small bird is near the window.", response_format: "wav",
    });
    const bytes = Buffer.from(await said.arrayBuffer());
    const file = createReadStream(`${folder}/question.wav`);
    const { text } = await client.audio.transcriptions.create({ model, file });
    return { bytes: bytes.length, head: bytes.toString("latin1", 0, 4), text };
  },

  async text() {
    const talk = await realtime({ output_modalities: ["text"] });
    talk.say("Good morning!");
    talk.send("response.create", {});
    await done(talk);
    return end(talk);
  },

  async audio() {
    const talk = await realtime({ instructions: TRANSCRIBE, audio: { input: manual } });
    talk.hear(sound());
    talk.send("input_audio_buffer.commit");
    talk.send("response.create", {});
    const { output } = await done(talk);
    talk.send("conversation.item.truncate", { item_id: output[0].id, content_index: 0, audio_end_ms: 500 });
    await talk.until("conversation.item.truncated");
    return end(talk);
  },

  async cancel() {
    const talk = await realtime({ instructions: TRANSCRIBE, audio: { input: manual } });
    talk.hear(sound());
    talk.send("input_audio_buffer.commit");
    talk.send("response.create", {});
    await talk.until("response.created");
    const over = done(talk);
    talk.send("response.cancel", {});
    await over;
    return end(talk);
  },

  async vad() {
    const input = { turn_detection: { type: "server_vad" }, transcription: { model: "whisper-1" } };
    const talk = await realtime({ ...writes, audio: { input } });
    const written = talk.until("conversation.item.input_audio_transcription.completed");
    const over = done(talk);
    talk.hear(sound());
    await Promise.all([written, over]);
    return end(talk);
  },

  async live() {
    const talk = new Talk(new LiveWS(client));
    talk.send("session.start", {
      session: {
        model, instructions: "Talk.", audio: { format: { type: "audio/pcm", rate: 24000 } },
        sensorium: { listen_bias: 0, force_listen_units: 0 },
      },
    });
    await talk.until("session.started");
    const said = talk.until("session.output_transcript.delta");
    talk.hear(sound(), "session.input_audio.append");
    await said;
    talk.send("session.close");
    await talk.until("session.closed");
    return end(talk);
  },
};

console.log(JSON.stringify(await flows[flow]()));
