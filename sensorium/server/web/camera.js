// A picture from the camera, taken in a dialog.

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

/** Opens the dialog (it holds a <video> and two buttons); resolves to a File, or null when it was closed. */
export async function takePicture(dialog) {
  const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  const video = dialog.querySelector("video");
  try {
    video.srcObject = stream;
    await video.play();
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((closed) => dialog.addEventListener("close", closed, { once: true }));
    if (dialog.returnValue !== "take") return null;
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    return new File([await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 })], "camera.jpg", { type: "image/jpeg" });
  } finally {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  }
}
