// Pictures, sounds and videos: from files or the microphone to content parts and to elements that show them.

/** A piece of media: { kind, name, part (for the API) }. Throws for files of another kind. */
export async function toMedia(file) {
  const kind = file.type.split("/")[0];
  if (!["image", "audio", "video"].includes(kind)) throw new Error(`${file.name || "that"} is no picture, sound or video`);
  const data = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read`));
    reader.readAsDataURL(file);
  });
  // A recording's type may carry parameters ("audio/webm;codecs=opus"), which a data URL need not have.
  const url = `data:${file.type.split(";")[0]};base64,${data.slice(data.indexOf(",") + 1)}`;
  const type = `${kind}_url`;
  return { kind, name: file.name, part: { type, [type]: { url } } };
}

export function show(media) {
  const element = document.createElement(media.kind === "image" ? "img" : media.kind);
  element.src = media.part[media.part.type].url;
  if (media.kind === "image") element.alt = media.name || "picture";
  else {
    element.controls = true;
    element.setAttribute("aria-label", media.name || media.kind);
  }
  return element;
}

export const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && window.MediaRecorder);

/** Starts recording; the result has stop(), which resolves to the recording as a File. */
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const chunks = [];
  recorder.ondataavailable = (event) => chunks.push(event.data);
  const stopped = new Promise((resolve) => (recorder.onstop = resolve));
  recorder.start();
  return {
    async stop() {
      recorder.stop();
      await stopped;
      for (const track of stream.getTracks()) track.stop();
      return new File(chunks, "recording", { type: recorder.mimeType || "audio/webm" });
    },
  };
}
