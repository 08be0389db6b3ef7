// On the audio thread: plays 16-bit samples as they come, a little later than they come, so that the next are in time.
// In: { sound: Int16Array }, { ended: true } (nothing more is to come for now), { flush: true } (silence at once).
// Out, ten times a second: { taken, waiting, starved: samples had, still to be played, missing so far; level: the loudest }.

const REPORT = 0.1 * sampleRate;
const LONGEST_DELAY = 0.5 * sampleRate;

class Speaker extends AudioWorkletProcessor {
  #pieces = [];
  #place = 0; // in the first piece
  #waiting = 0;
  #delay = 0.15 * sampleRate; // before the first sample after silence
  #silence = this.#delay; // of it, what is still to come
  #ended = true;
  #gap = 0; // samples since sound ran out before its end
  #taken = 0;
  #starved = 0;
  #level = 0;
  #since = 0;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => this.#take(data);
  }

  #take({ sound, ended, flush }) {
    if (flush) {
      this.#pieces = [];
      this.#place = this.#waiting = 0;
    }
    if (flush || ended) {
      this.#ended = true;
      this.#gap = 0;
    }
    if (sound) {
      if (this.#gap) this.#late();
      this.#pieces.push(sound);
      this.#waiting += sound.length;
      this.#taken += sound.length;
      this.#ended = false;
    }
  }

  /** Sound came after it was wanted: from now on it is given more time. */
  #late() {
    this.#starved += this.#gap;
    this.#gap = 0;
    this.#delay = Math.min(LONGEST_DELAY, 1.5 * this.#delay);
  }

  #next() {
    const sample = this.#pieces[0][this.#place] / 32768;
    this.#place += 1;
    this.#waiting -= 1;
    if (this.#place === this.#pieces[0].length) {
      this.#pieces.shift();
      this.#place = 0;
    }
    return sample;
  }

  #play(out) {
    const count = Math.min(out.length, this.#waiting);
    for (let index = 0; index < count; index += 1) {
      out[index] = this.#next();
      this.#level = Math.max(this.#level, Math.abs(out[index]));
    }
  }

  process(_, [[out]]) {
    if (!this.#waiting) {
      this.#silence = this.#delay;
      if (!this.#ended) this.#gap += out.length;
    } else if (this.#silence > 0 && !this.#ended) {
      this.#silence -= out.length;
    } else {
      this.#play(out);
    }
    this.#since += out.length;
    if (this.#since >= REPORT) {
      const [taken, waiting, starved, level] = [this.#taken, this.#waiting, this.#starved, this.#level];
      this.port.postMessage({ taken, waiting, starved, level });
      this.#since = this.#level = 0;
    }
    return true;
  }
}

registerProcessor("speaker", Speaker);
