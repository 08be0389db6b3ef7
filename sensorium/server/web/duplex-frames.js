// The binary frames of /v1/duplex: 16 bytes of header, little endian, and a payload. See docs/duplex-protocol.md.

const HEAD = 16;

export const SOUND = 1;
export const JPEG = 2;
export const DISCONTINUITY = 1;
export const LAST = 2;

/** payload: a typed array. position: in samples for sound, in microseconds for pictures. */
export function writeFrame(kind, flags, sequence, position, payload) {
  const bytes = new Uint8Array(HEAD + payload.byteLength);
  const head = new DataView(bytes.buffer);
  head.setUint8(0, kind);
  head.setUint8(1, flags);
  head.setUint32(4, sequence, true);
  head.setBigUint64(8, BigInt(position), true);
  bytes.set(new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength), HEAD);
  return bytes;
}

/** A frame of sound: { sequence, position, samples, last }. */
export function readSound(buffer) {
  const head = new DataView(buffer);
  return {
    sequence: head.getUint32(4, true),
    position: Number(head.getBigUint64(8, true)),
    samples: new Int16Array(buffer, HEAD),
    last: Boolean(head.getUint8(1) & LAST),
  };
}
