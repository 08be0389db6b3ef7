// The microphone as a stream of 16-bit samples at 16 kHz.

const WANTED = { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true };

export class Microphone {
  #stream;
  #context;

  /** Asks for the microphone; heard(Int16Array of 100 ms) is called from then on. Throws what getUserMedia throws. */
  async open(heard) {
    this.#stream = await navigator.mediaDevices.getUserMedia({ audio: WANTED });
    this.#context = new AudioContext();
    await this.#context.audioWorklet.addModule("microphone-worklet.js");
    const node = new AudioWorkletNode(this.#context, "microphone", { numberOfOutputs: 0 });
    node.port.onmessage = ({ data }) => heard(data);
    this.#context.createMediaStreamSource(this.#stream).connect(node);
    this.#context.resume();
  }

  /** A muted microphone gives silence, so that time goes on. */
  mute(muted) {
    for (const track of this.#stream.getAudioTracks()) track.enabled = !muted;
  }

  /** gone() is called when the microphone is taken away: unplugged, or the permission withdrawn. */
  set ongone(gone) {
    for (const track of this.#stream.getAudioTracks()) track.onended = gone;
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#context?.close();
  }
}
