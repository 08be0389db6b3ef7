// Sound to another rate, piece by piece: a windowed sinc, looked up in a table.

const LOBES = 16; // zero crossings of the sinc on either side
const STEPS = 256; // of the table, from one zero crossing to the next

const TABLE = new Float32Array(LOBES * STEPS + 2);
for (let step = 0; step < TABLE.length; step += 1) {
  const x = step / STEPS;
  const sinc = x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
  TABLE[step] = x >= LOBES ? 0 : sinc * (0.5 + 0.5 * Math.cos((Math.PI * x) / LOBES));
}

/** Float samples at `from` Hz in, at `to` Hz out. What comes out is late by half a filter: 16 samples of the lower rate. */
export class Resampler {
  #ratio; // input samples per output sample
  #cut; // of the pass band, as a share of the input's
  #reach; // input samples that the filter needs on either side
  #held;
  #place; // of the next output sample, in #held

  constructor(from, to) {
    this.#ratio = from / to;
    this.#cut = Math.min(1, to / from);
    this.#reach = Math.ceil(LOBES / this.#cut);
    this.#held = new Float32Array(this.#reach); // silence before the beginning
    this.#place = this.#reach;
  }

  push(samples) {
    if (this.#ratio === 1) return samples;
    const held = new Float32Array(this.#held.length + samples.length);
    held.set(this.#held);
    held.set(samples, this.#held.length);
    const count = Math.max(0, Math.ceil((held.length - this.#reach - this.#place) / this.#ratio));
    const out = new Float32Array(count);
    for (let index = 0; index < count; index += 1) out[index] = this.#at(held, this.#place + index * this.#ratio);
    this.#place += count * this.#ratio;
    const done = Math.min(held.length, Math.floor(this.#place) - this.#reach);
    this.#held = held.slice(done);
    this.#place -= done;
    return out;
  }

  #at(held, place) {
    let sum = 0;
    const last = Math.floor(place + this.#reach);
    for (let index = Math.ceil(place - this.#reach); index <= last; index += 1) {
      const x = Math.abs(index - place) * this.#cut * STEPS;
      const step = Math.floor(x);
      if (step < LOBES * STEPS) sum += held[index] * (TABLE[step] + (x - step) * (TABLE[step + 1] - TABLE[step]));
    }
    return sum * this.#cut;
  }
}
