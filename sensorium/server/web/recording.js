// A live session as a recording: you on the left, the model on the right, as they were heard. Kept by this page only.

import { Resampler } from "./resample.js";
import { joined, toWav } from "./wave.js";

const RATE = 24000;
const DELAY = 0.15 * RATE; // after which the speaker begins; see speaker-worklet.js
const LONGEST_S = 600;

export class Recording {
  #resampler;
  #heard = []; // pieces at RATE, one after another
  #dropped = 0; // samples before them
  #now = 0; // samples heard so far
  #said = []; // { at, samples }

  /** rate: of what is heard. */
  constructor(rate) {
    this.#resampler = new Resampler(rate, RATE);
  }

  heard(samples) {
    const piece = Int16Array.from(this.#resampler.push(Float32Array.from(samples)), (sample) =>
      Math.max(-32768, Math.min(32767, Math.round(sample))),
    );
    this.#heard.push(piece);
    this.#now += piece.length;
    while (this.#now - this.#dropped > LONGEST_S * RATE) this.#dropped += this.#heard.shift().length;
    while (this.#said[0] && this.#end(this.#said[0]) < this.#dropped) this.#said.shift();
  }

  /** What is given to the speaker is heard a little later, or after what was given before. */
  said(samples) {
    const last = this.#said.at(-1);
    this.#said.push({ at: Math.max(this.#now + DELAY, last ? this.#end(last) : 0), samples });
  }

  /** What has not been heard by now never will be. */
  silence() {
    this.#said = this.#said
      .filter(({ at }) => at < this.#now)
      .map(({ at, samples }) => ({ at, samples: samples.subarray(0, this.#now - at) }));
  }

  #end({ at, samples }) {
    return at + samples.length;
  }

  get seconds() {
    return (this.#now - this.#dropped) / RATE;
  }

  /** A WAV file with two channels. */
  save() {
    const left = joined(this.#heard);
    const both = new Int16Array(2 * left.length);
    left.forEach((sample, place) => (both[2 * place] = sample));
    for (const { at, samples } of this.#said) {
      const first = Math.round(at) - this.#dropped;
      samples.forEach((sample, place) => {
        const there = first + place;
        if (there >= 0 && there < left.length) both[2 * there + 1] = sample;
      });
    }
    return toWav(both, RATE, 2);
  }
}
