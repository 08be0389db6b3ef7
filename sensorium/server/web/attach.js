// What will be sent with the next question: chosen, pasted, dropped, recorded, or taken with the camera.

import { hasCamera, takePicture } from "./camera.js";
import { at, make } from "./elements.js";
import { canRecord, record, show, toMedia } from "./media.js";

let attached = [];
let recording = null;
let notice = () => {};

/** Adds files; a file of another kind is told about and left out. */
export async function attach(files) {
  notice();
  for (const file of files) {
    try {
      attached.push(await toMedia(file));
    } catch (error) {
      notice(error.message);
    }
  }
  showAttached();
  at("question").focus();
}

/** Media to begin with instead of what is there. */
export function put(media) {
  attached = media;
  showAttached();
}

/** All that is attached, a recording that still runs included; nothing is attached afterwards. */
export async function take() {
  if (recording) await toggleRecording();
  const media = attached;
  put([]);
  return media;
}

function showAttached() {
  at("attachments").replaceChildren(
    ...attached.map((media) => {
      const item = make("li");
      const remove = make("button", "", "✕");
      remove.type = "button";
      remove.ariaLabel = `Remove ${media.name || media.kind}`;
      remove.onclick = () => put(attached.filter((other) => other !== media));
      item.append(show(media), remove);
      return item;
    }),
  );
}

async function toggleRecording() {
  try {
    if (recording) {
      const finished = recording;
      recording = null;
      await attach([await finished.stop()]);
    } else {
      recording = await record();
    }
  } catch {
    notice("The microphone is not available.");
  }
  at("record").ariaPressed = String(Boolean(recording));
}

async function photograph() {
  try {
    const picture = await takePicture(at("camera-dialog"));
    if (picture) await attach([picture]);
  } catch {
    notice("The camera is not available.");
  }
}

/** Connects the page's buttons and gestures; tell(text) shows what went wrong, tell() takes it away. */
export function start(tell) {
  notice = tell;
  at("attach").onclick = () => at("files").click();
  at("files").onchange = (event) => {
    attach([...event.target.files]);
    event.target.value = "";
  };
  at("record").hidden = !canRecord();
  at("record").onclick = toggleRecording;
  at("camera").hidden = !hasCamera();
  at("camera").onclick = photograph;
  document.addEventListener("paste", (event) => {
    if (at("chat").hidden || !event.clipboardData.files.length) return;
    event.preventDefault();
    attach([...event.clipboardData.files]);
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    const wanted = !at("chat").hidden && event.dataTransfer.types.includes("Files");
    document.body.classList.toggle("dropping", wanted);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (!at("chat").hidden) attach([...event.dataTransfer.files]);
  });
}
