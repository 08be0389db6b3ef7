// The camera or the screen, as JPEG pictures.

const LONGEST = 640; // side of a picture, in pixels

export class Frames {
  #video;
  #canvas = document.createElement("canvas");
  #stream = null;

  /** video: the element that shows what is seen. */
  constructor(video) {
    this.#video = video;
  }

  /** Opens a camera, "user" (front) or "environment" (back), or the "screen". Throws what the browser throws. */
  async open(source) {
    this.close();
    const wanted = { facingMode: source, width: { ideal: 1280 }, height: { ideal: 720 } };
    const devices = navigator.mediaDevices;
    this.#stream = await (source === "screen" ? devices.getDisplayMedia() : devices.getUserMedia({ video: wanted }));
    this.#video.srcObject = this.#stream;
    this.#video.classList.toggle("mirrored", source === "user");
    await this.#video.play();
  }

  /** What is seen now, as a Blob; null while nothing is. */
  async take() {
    const { videoWidth, videoHeight } = this.#video;
    if (!this.#stream || !videoWidth) return null;
    const scale = Math.min(1, LONGEST / Math.max(videoWidth, videoHeight));
    this.#canvas.width = Math.round(videoWidth * scale);
    this.#canvas.height = Math.round(videoHeight * scale);
    this.#canvas.getContext("2d").drawImage(this.#video, 0, 0, this.#canvas.width, this.#canvas.height);
    return new Promise((done) => this.#canvas.toBlob(done, "image/jpeg", 0.8));
  }

  /** gone() is called when what is seen is taken away: unplugged, or no longer shared. */
  set ongone(gone) {
    for (const track of this.#stream.getTracks()) track.onended = gone;
  }

  get on() {
    return Boolean(this.#stream);
  }

  close() {
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.#stream = this.#video.srcObject = null;
  }
}
