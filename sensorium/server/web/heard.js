// What was heard and seen lately, to be shown beside what the model made of it.

import { peaks } from "./wave.js";

const KEPT_S = 20;

export class Heard {
  #rate;
  #sounds = []; // { position, samples }
  #pictures = []; // { position, blob }

  constructor(rate) {
    this.#rate = rate;
  }

  sound(position, samples) {
    this.#sounds.push({ position, samples });
    const oldest = position - KEPT_S * this.#rate;
    while (this.#sounds[0].position < oldest) this.#sounds.shift();
    while (this.#pictures[0]?.position < oldest) this.#pictures.shift();
  }

  /** A picture that was taken while the sample at `position` was heard. */
  picture(position, blob) {
    this.#pictures.push({ position, blob });
  }

  /** { heights: loudness from 0 to 1 in `count` equal parts, blob: the newest picture or undefined } of a stretch. */
  stretch(start, end, count) {
    const whole = new Int16Array(end - start);
    for (const { position, samples } of this.#sounds) {
      const from = Math.max(0, start - position);
      const to = Math.min(samples.length, end - position);
      if (to > from) whole.set(samples.subarray(from, to), position + from - start);
    }
    const seen = this.#pictures.filter(({ position }) => position >= start && position < end);
    return { heights: peaks(whole, count), blob: seen.at(-1)?.blob };
  }
}
