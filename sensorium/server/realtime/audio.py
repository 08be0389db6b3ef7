"""Sound as clients send it, made into 16 kHz samples and kept until it becomes an item."""

from __future__ import annotations

import io
import wave
from collections import deque
from typing import Any

import numpy as np
import pybase64
import soxr  # pyright: ignore[reportMissingTypeStubs]

from sensorium.errors import RequestError, TooLargeError
from sensorium.media.encode import to_alaw, to_mulaw
from sensorium.media.wav import WavFile
from sensorium.server.realtime.conversation import Item
from sensorium.server.realtime.schema import AudioFormat, refusal
from sensorium.server.realtime.session import RATES
from sensorium.types import MediaRef
from sensorium.vad import RATE

CODECS = {"audio/pcm": (1, 16), "audio/pcmu": (7, 8), "audio/pcma": (6, 8)}
"""Format -> the WAVE code of its codec, and bits of a sample."""


class Ear:
    """Turns messages of one format into samples, without seams between them."""

    def __init__(self, format_: AudioFormat) -> None:
        self._codec, self._bits = CODECS[format_.type]
        self._rate = format_.rate or RATES[format_.type]
        self._open()

    def _open(self) -> None:
        self._resampler: Any = None
        if self._rate != RATE:
            self._resampler = soxr.ResampleStream(self._rate, RATE, 1, dtype="float32")

    def hear(self, audio: str) -> np.ndarray:
        """Base64 text -> float32 [n] at 16 kHz. Raises RequestError for what is no sound of that format."""
        try:
            data = pybase64.b64decode(audio, validate=True)
        except ValueError:
            raise _invalid("is not valid base64") from None
        if len(data) * 8 % self._bits:
            raise _invalid("16-bit samples take an even number of bytes")
        frames = len(data) * 8 // self._bits
        samples = WavFile(self._rate, 1, self._codec, self._bits, memoryview(data)).read(0, frames)[:, 0]
        return samples if self._resampler is None else self._resampler.resample_chunk(samples)

    def end(self) -> np.ndarray:
        """What the resampler still holds; what is heard next has nothing to do with it."""
        if self._resampler is None:
            return np.zeros(0, dtype=np.float32)
        rest = self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        self._open()
        return rest


class Heard:
    """Samples that are in no item yet. Places are counted from the session's first sample."""

    def __init__(self, max_samples: int) -> None:
        self._max = max_samples
        self._chunks: deque[np.ndarray] = deque()
        self.start = self.end = 0

    def add(self, samples: np.ndarray) -> None:
        """Raises TooLargeError where nobody took away what was there."""
        if self.end + len(samples) - self.start > self._max:
            reason = f"audio: more than {self._max / RATE:.0f} s wait in the input buffer; commit or clear it"
            full = TooLargeError(reason, param="audio")
            full.code = "buffer_full"
            raise full
        self._chunks.append(samples)
        self.end += len(samples)

    def copy(self, start: int, end: int) -> np.ndarray:
        """Samples [start, end) of those that are there."""
        parts, place = [np.zeros(0, dtype=np.float32)], self.start
        for chunk in self._chunks:
            if place < end and start < place + len(chunk):
                parts.append(chunk[max(start - place, 0) : end - place])
            place += len(chunk)
        return np.concatenate(parts)

    def take(self, start: int, end: int) -> np.ndarray:
        """Samples [start, end); they and all before them are gone then."""
        samples = self.copy(start, end)
        self.forget(end)
        return samples

    def forget(self, before: int) -> None:
        """Drop whole chunks that lie before a place, and the beginning of the one it lies in."""
        while self._chunks and self.start + len(self._chunks[0]) <= before:
            self.start += len(self._chunks.popleft())
        if self._chunks and self.start < before:
            self._chunks[0] = self._chunks[0][before - self.start :]
            self.start = before


def to_wav(samples: np.ndarray) -> bytes:
    """float32 [n] at 16 kHz as a WAVE file of 16-bit samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(RATE)
        scaled = np.minimum(np.maximum(np.rint(samples * 32768), -32768), 32767)
        writer.writeframes(scaled.astype("<i2").tobytes())
    return file.getvalue()


def with_media(item: Item, format_: AudioFormat) -> dict[str, Any]:
    """As a client sees an item that it asks for: with the sound, in that format, and the pictures that it holds."""
    told = item.told()
    media = iter([part for part in item.parts if isinstance(part, MediaRef)])
    for part in told.get("content", ()):
        if part["type"] not in ("input_audio", "input_image") or (ref := next(media, None)) is None:
            continue
        if part["type"] == "input_image":
            part["image_url"] = ref.source
        elif isinstance(ref.source, bytes):
            part["audio"] = pybase64.b64encode(_from_wav(ref.source, format_)).decode()
    return told


def _from_wav(data: bytes, format_: AudioFormat) -> bytes:
    with wave.open(io.BytesIO(data)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    rate = format_.rate or RATES[format_.type]
    if rate != RATE:
        samples = soxr.resample(samples, RATE, rate)
    if format_.type == "audio/pcm":
        return samples.astype("<i2").tobytes()
    return (to_mulaw if format_.type == "audio/pcmu" else to_alaw)(samples).tobytes()


def _invalid(reason: str) -> RequestError:
    return refusal("invalid_audio", f"audio: {reason}", "audio")
