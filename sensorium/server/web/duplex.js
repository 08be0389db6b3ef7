// One full-duplex session over WS /v1/duplex, dropped sockets included. See docs/duplex-protocol.md.

import { model, socket } from "./api.js";
import { DISCONTINUITY, JPEG, readSound, SOUND, writeFrame } from "./duplex-frames.js";

const SUBPROTOCOL = "sensorium.duplex.v1";
const KEPT = 20; // pieces of sound that can be sent again after a drop: 2 s
const MOST_WAITING = 256 << 10; // bytes in the socket, above which pictures are left out
const FIRST_DELAY_MS = 250;
const LAST_DELAY_MS = 4000;

const ENDINGS = {
  expired: "The session has lasted as long as this server lets one last.",
  idle: "The session ended, as no sound came for a while.",
  paused: "The session ended, as it was paused for long.",
  context_full: "The model's context is full, so the session ended.",
  replaced: "The session goes on in another window.",
  shutting_down: "The server is shutting down.",
  engine_restarted: "The server's engine was restarted, which ended the session.",
  failed: "The session broke on the server.",
};

/**
 * tell has a function for each of
 *   state(name, detail): connecting, queued { position, eta_s }, ready (the server's message), reconnecting,
 *     ended { message } (message is empty when it was asked to stop), failed { message }
 *   unit(message), text(message), turn(message), notice(message), error(message): as the server says them
 *   sound({ position, samples, last }): to be played
 *   silence(): what is played must stop at once
 */
export class Duplex {
  #tell;
  #start;
  #socket = null;
  #ready = null; // the server's last "ready"
  #over = false;
  #dropped = 0; // when the socket was lost, in ms
  #delay = FIRST_DELAY_MS;
  #timer = 0;
  #next = { seq: 0, audio: 0, sound: 0, picture: 0, position: 0 };
  #kept = []; // [position, samples], the newest last
  #broken = false; // whether positions of sound skip something
  #turn = null; // the one that is being said
  #deaf = false; // after an interruption, until the server knows of it
  #paused = false;

  /** start: the fields of the message that begins a session. */
  constructor(start, tell) {
    this.#start = start;
    this.#tell = tell;
  }

  open() {
    this.#tell.state("connecting");
    this.#connect();
  }

  #connect() {
    let one;
    try {
      one = socket("v1/duplex", SUBPROTOCOL);
    } catch {
      return this.#end("failed", "The key has characters that browsers cannot send when they open a WebSocket.");
    }
    this.#socket = one;
    one.binaryType = "arraybuffer";
    one.onopen = () => this.#greet();
    one.onmessage = ({ data }) => one === this.#socket && this.#take(data);
    one.onclose = ({ code }) => one === this.#socket && this.#closed(code);
  }

  #greet() {
    if (!this.#ready) return this.#say({ type: "start", ...this.#start });
    const { session, resume_token } = this.#ready;
    this.#say({ type: "resume", session, resume_token, seq: this.#next.seq, audio_seq: this.#next.audio });
  }

  #say(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  // ---- what the server says ----

  #take(data) {
    if (data instanceof ArrayBuffer) return this.#hear(readSound(data));
    const message = JSON.parse(data);
    if (message.seq !== undefined && message.type !== "ready") this.#next.seq = message.seq + 1;
    const act = {
      queued: () => this.#tell.state("queued", message),
      ready: () => this.#begin(message),
      turn: () => this.#turned(message),
      unit: () => this.#tell.unit(message),
      text: () => this.#tell.text(message),
      notice: () => this.#tell.notice(message),
      error: () => (message.fatal || !this.#ready ? this.#end("failed", message.message) : this.#tell.error(message)),
      bye: () => this.#end("ended", ENDINGS[message.reason] ?? ""),
    };
    act[message.type]?.();
  }

  #begin(message) {
    this.#ready = message;
    this.#dropped = 0;
    this.#delay = FIRST_DELAY_MS;
    this.#next.seq = message.seq;
    this.#next.audio = message.audio_seq;
    const again = this.#kept.filter(([position]) => position >= message.in_samples);
    this.#broken = message.resumed && (again[0]?.[0] ?? this.#next.position) !== message.in_samples;
    for (const [position, samples] of again) this.#send(position, samples);
    if (this.#paused) this.#say({ type: "pause" });
    this.#tell.state("ready", message);
  }

  #turned(message) {
    this.#turn = message.event === "start" ? message.id : null;
    this.#deaf = false;
    if (message.event === "cancelled") this.#tell.silence();
    this.#tell.turn(message);
  }

  #hear(sound) {
    this.#next.audio = sound.sequence + 1;
    if (!this.#deaf) this.#tell.sound(sound);
  }

  async #closed(code) {
    if (this.#over) return;
    if (!this.#ready) {
      if (code === 1013) return this.#end("failed", "All places are taken, and the queue is full. Try again in a moment.");
      // A browser does not say why a socket did not open; the server does, if asked in another way.
      const why = await model().then(() => "The server refused the connection.", ({ message }) => message);
      return this.#end("failed", why);
    }
    this.#dropped ||= performance.now();
    const away = performance.now() - this.#dropped;
    if (away > 1000 * this.#ready.limits.resume_s) {
      return this.#end("failed", "The connection was lost, and did not come back in time.");
    }
    this.#tell.state("reconnecting");
    this.#timer = setTimeout(() => this.#connect(), this.#delay);
    this.#delay = Math.min(LAST_DELAY_MS, 2 * this.#delay);
  }

  #end(state, message) {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    this.#socket?.close();
    this.#tell.state(state, { message });
  }

  // ---- what the client says ----

  #send(position, samples) {
    if (this.#socket?.readyState !== WebSocket.OPEN || this.#dropped) return;
    const flags = this.#broken ? DISCONTINUITY : 0;
    this.#broken = false;
    this.#socket.send(writeFrame(SOUND, flags, this.#next.sound, position, samples));
    this.#next.sound += 1;
  }

  /** Sends 16-bit samples, at audio.in; returns their position in the session, or null when they are not taken. */
  sound(samples) {
    if (!this.#ready || this.#over || this.#paused) return null;
    const { position } = this.#next;
    this.#next.position += samples.length;
    this.#kept.push([position, samples]);
    if (this.#kept.length > KEPT) this.#kept.shift();
    this.#send(position, samples);
    return position;
  }

  /** Sends a JPEG (an ArrayBuffer), unless the line is full; returns whether it was sent. */
  picture(jpeg) {
    const open = this.#ready && !this.#dropped && !this.#paused && this.#socket.readyState === WebSocket.OPEN;
    if (!open || this.#socket.bufferedAmount > MOST_WAITING) return false;
    const position = Math.round((1e6 * this.#next.position) / this.#ready.audio.in);
    this.#socket.send(writeFrame(JPEG, 0, this.#next.picture, position, new Uint8Array(jpeg)));
    this.#next.picture += 1;
    return true;
  }

  type(text) {
    this.#say({ type: "text", text });
  }

  /** Ends what is being said: what still arrives of it is not played. */
  interrupt() {
    this.#deaf = this.#turn !== null;
    this.#say({ type: "interrupt" });
    this.#tell.silence();
  }

  pause(paused) {
    this.#paused = paused;
    this.#say({ type: paused ? "pause" : "resume" });
  }

  played(samples) {
    this.#say({ type: "played", samples });
  }

  stop() {
    this.#say({ type: "stop" });
    this.#end("ended", "");
  }
}
