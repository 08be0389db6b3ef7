// On the audio thread: what the microphone gives, as 16-bit samples at 16 kHz, 100 ms at a time.

import { Resampler } from "./resample.js";

const RATE = 16000;
const PIECE = RATE / 10;

class Microphone extends AudioWorkletProcessor {
  #resampler = new Resampler(sampleRate, RATE);
  #piece = new Int16Array(PIECE);
  #filled = 0;

  process([input]) {
    if (!input.length) return true;
    const mono = input.length === 1 ? input[0] : input[0].map((left, index) => (left + input[1][index]) / 2);
    for (const sample of this.#resampler.push(mono)) {
      this.#piece[this.#filled] = Math.max(-32768, Math.min(32767, Math.round(32767 * sample)));
      this.#filled += 1;
      if (this.#filled === PIECE) {
        this.port.postMessage(this.#piece, [this.#piece.buffer]);
        this.#piece = new Int16Array(PIECE);
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
