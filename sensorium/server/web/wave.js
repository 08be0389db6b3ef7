// Sound as a picture and as a file.

import { colour } from "./colours.js";

/** The loudest of each of `count` equal stretches of 16-bit samples, from 0 to 1. */
export function peaks(samples, count) {
  return Array.from({ length: count }, (_, place) => {
    const [start, end] = [place, place + 1].map((edge) => Math.floor((edge * samples.length) / count));
    let most = 0;
    for (let index = start; index < end; index += 1) most = Math.max(most, Math.abs(samples[index]));
    return most / 32768;
  });
}

/** Draws peaks as bars; those up to `share` in the colour named `on`, the others in that named `off`. */
export function drawPeaks(canvas, heights, share, on, off) {
  const scale = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const step = width / heights.length;
  heights.forEach((peak, place) => {
    // Loudness is heard by ratios: a root keeps quiet speech visible.
    const tall = Math.max(2, Math.sqrt(peak) * height);
    pen.fillStyle = colour(place < share * heights.length ? on : off);
    pen.beginPath();
    pen.roundRect(place * step + step * 0.2, (height - tall) / 2, step * 0.6, tall, step * 0.3);
    pen.fill();
  });
}

/** 16-bit samples as a WAV file; those of several channels take turns. */
export function toWav(samples, rate, channels = 1) {
  const head = new DataView(new ArrayBuffer(44));
  const text = (place, letters) => [...letters].forEach((letter, index) => head.setUint8(place + index, letter.charCodeAt(0)));
  text(0, "RIFF");
  head.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true); // PCM
  head.setUint16(22, channels, true);
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * channels * rate, true);
  head.setUint16(32, 2 * channels, true);
  head.setUint16(34, 16, true);
  text(36, "data");
  head.setUint32(40, 2 * samples.length, true);
  return new Blob([head, samples], { type: "audio/wav" });
}

/** One array of many. */
export function joined(pieces) {
  const all = new Int16Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let place = 0;
  for (const piece of pieces) {
    all.set(piece, place);
    place += piece.length;
  }
  return all;
}

/** 16-bit samples from base64. */
export function fromBase64(text) {
  return new Int16Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}
