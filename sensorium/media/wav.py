"""A reader of RIFF WAVE files: PCM of 8 to 32 bits, 32- and 64-bit float, A-law and µ-law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE


@dataclass(frozen=True, slots=True)
class WavFile:
    """The one recording in a file. Frames hold one sample per channel."""

    rate: int
    channels: int
    codec: int
    bits: int
    data: memoryview

    @property
    def frames(self) -> int:
        return len(self.data) // (self.channels * self.bits // 8)

    def read(self, start: int, count: int) -> np.ndarray:
        """Frames [start, start + count) as float32 [count, channels]; full scale is 1."""
        width = self.channels * self.bits // 8
        raw = np.frombuffer(self.data[start * width : (start + count) * width], dtype=np.uint8)
        return _to_float(raw, self.codec, self.bits).reshape(-1, self.channels)


def read_wav(data: bytes) -> WavFile | None:
    """The file's layout, or None when it is damaged or holds a codec not listed above.

    Lengths in the header are not trusted: the samples are what is really there.
    """
    view = memoryview(data)
    if len(view) < 12 or bytes(view[:4]) != b"RIFF" or bytes(view[8:12]) != b"WAVE":
        return None
    position, layout = 12, None
    while position + 8 <= len(view):
        name = bytes(view[position : position + 4])
        size = int.from_bytes(view[position + 4 : position + 8], "little")
        body = view[position + 8 : position + 8 + size]
        if name == b"fmt ":
            layout = _layout(body)
        elif name == b"data":
            if layout is None:
                return None
            if size == 0:  # a recorder that never came back to fill in the length
                body = view[position + 8 :]
            rate, channels, codec, bits = layout
            width = channels * bits // 8
            return WavFile(rate, channels, codec, bits, body[: len(body) // width * width])
        position += 8 + size + (size & 1)
    return None


def _layout(body: memoryview) -> tuple[int, int, int, int] | None:
    if len(body) < 16:
        return None
    codec = int.from_bytes(body[0:2], "little")
    channels = int.from_bytes(body[2:4], "little")
    rate = int.from_bytes(body[4:8], "little")
    bits = int.from_bytes(body[14:16], "little")
    if codec == _EXTENSIBLE and len(body) >= 26:
        codec = int.from_bytes(body[24:26], "little")
    known = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64), _ALAW: (8,), _MULAW: (8,)}
    return (rate, channels, codec, bits) if channels and bits in known.get(codec, ()) else None


def _to_float(raw: np.ndarray, codec: int, bits: int) -> np.ndarray:
    if codec == _FLOAT:
        with np.errstate(over="ignore"):  # 64-bit values beyond float32 become infinite and are refused later
            return raw.view(f"<f{bits // 8}").astype(np.float32)
    if codec == _MULAW:
        return _MULAW_TABLE[raw]
    if codec == _ALAW:
        return _ALAW_TABLE[raw]
    if bits == 8:
        return (raw.astype(np.float32) - 128.0) / 128.0
    if bits == 24:
        padded = np.zeros((len(raw) // 3, 4), dtype=np.uint8)
        padded[:, 1:] = raw.reshape(-1, 3)
        return padded.view("<i4")[:, 0].astype(np.float32) / 2.0**31
    samples = raw.view(f"<i{bits // 8}").astype(np.float32)
    samples *= np.float32(2.0 ** (1 - bits))  # in place: memory that is new costs more than the product
    return samples


def _mulaw_table() -> np.ndarray:
    """G.711 µ-law: sign, three bits of exponent, four of mantissa, all inverted."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = (((code & 0x0F) << 3) + 0x84 << ((code >> 4) & 7)) - 0x84
    return (np.where(code & 0x80, -magnitude, magnitude) / 32768.0).astype(np.float32)


def _alaw_table() -> np.ndarray:
    """G.711 A-law: even bits inverted; exponent 0 is linear."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, (code & 0x0F) << 4
    magnitude = np.where(exponent == 0, mantissa + 8, (mantissa + 0x108) << np.maximum(exponent - 1, 0))
    return (np.where(code & 0x80, magnitude, -magnitude) / 32768.0).astype(np.float32)


_MULAW_TABLE = _mulaw_table()
_ALAW_TABLE = _alaw_table()
