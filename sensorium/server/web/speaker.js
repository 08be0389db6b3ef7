// Sound out: 16-bit samples at 24 kHz, played as they come.

export const RATE = 24000;

export class Speaker {
  #context;
  #node;
  #sent = 0; // samples

  /** Call it from a click, as browsers want; report({ waiting, level, starved }), in samples, comes ten times a second. */
  async open(report) {
    this.#context = new AudioContext({ sampleRate: RATE });
    await this.#context.audioWorklet.addModule("speaker-worklet.js");
    this.#node = new AudioWorkletNode(this.#context, "speaker", { numberOfInputs: 0, outputChannelCount: [1] });
    // A report that crosses sound on its way there would call it played.
    this.#node.port.onmessage = ({ data }) => data.taken === this.#sent && report(data);
    this.#node.connect(this.#context.destination);
    this.#context.resume();
  }

  play(samples) {
    this.#sent += samples.length;
    this.#node.port.postMessage({ sound: samples });
  }

  /** What was given is all there is for now: it is played without waiting for more. */
  end() {
    this.#node.port.postMessage({ ended: true });
  }

  /** Silence at once; what was not played never will be. */
  flush() {
    this.#node.port.postMessage({ flush: true });
  }

  pause() {
    return this.#context.suspend();
  }

  resume() {
    return this.#context.resume();
  }

  close() {
    this.#context?.close();
  }
}
