"""Sound as clients send it, made into 16 kHz samples, kept until it becomes an item, and watched for speech."""

from __future__ import annotations

import io
import wave
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pybase64
import soxr  # pyright: ignore[reportMissingTypeStubs]

from sensorium.errors import RequestError, TooLargeError
from sensorium.media.wav import WavFile
from sensorium.server.realtime.conversation import refusal
from sensorium.server.realtime.schema import AudioFormat, TurnDetection
from sensorium.server.realtime.session import RATES
from sensorium.vad import RATE, WINDOW, Detector, EnergyDetector

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
            limit = f"{self._max / RATE:.0f} s"
            raise TooLargeError(f"audio: more than {limit} wait in the input buffer; commit or clear it", param="audio")
        self._chunks.append(samples)
        self.end += len(samples)

    def take(self, start: int, end: int) -> np.ndarray:
        """Samples [start, end); they and all before them are gone then."""
        whole = np.concatenate([np.zeros(0, dtype=np.float32), *self._chunks])
        first = self.start
        self.forget(end)
        return whole[max(start - first, 0) : max(end - first, 0)]

    def forget(self, before: int) -> None:
        """Drop whole chunks that lie before a place, and the beginning of the one it lies in."""
        while self._chunks and self.start + len(self._chunks[0]) <= before:
            self.start += len(self._chunks.popleft())
        if self._chunks and self.start < before:
            self._chunks[0] = self._chunks[0][before - self.start :]
            self.start = before


@dataclass(frozen=True, slots=True)
class Started:
    """Somebody speaks; at: place of the first sample that counts, padding included."""

    at: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """They have been silent for long enough; start, at: the places of what belongs to it."""

    start: int
    at: int


class Turns:
    """server_vad: where turns begin and end in samples that arrive in pieces of any size."""

    def __init__(self, settings: TurnDetection, place: int, detector: Detector | None = None) -> None:
        """place: where the next sample lies."""
        self._detector = detector or EnergyDetector()
        self._threshold = settings.threshold
        self._ends_below = max(settings.threshold - 0.15, 0.05)
        self._padding = settings.prefix_padding_ms * RATE // 1000
        self._silence = settings.silence_duration_ms * RATE // 1000
        self._rest = np.zeros(0, dtype=np.float32)
        self._first = self._place = place
        self._start: int | None = None
        self._quiet: int | None = None

    @property
    def needed(self) -> int:
        """Samples before this place will never belong to a turn."""
        return max(self._place - self._padding, self._first) if self._start is None else self._start

    def hear(self, samples: np.ndarray) -> list[Started | Stopped]:
        found: list[Started | Stopped] = []
        self._rest = np.concatenate([self._rest, samples])
        whole = len(self._rest) // WINDOW * WINDOW
        for start in range(0, whole, WINDOW):
            event = self._judge(self._rest[start : start + WINDOW])
            if event is not None:
                found.append(event)
        self._rest = self._rest[whole:]
        return found

    def _judge(self, window: np.ndarray) -> Started | Stopped | None:
        probability = self._detector.probability(window)
        place, self._place = self._place, self._place + WINDOW
        if self._start is None:
            if probability < self._threshold:
                return None
            self._start, self._quiet = max(place - self._padding, self._first), None
            return Started(self._start)
        if probability >= self._ends_below:
            self._quiet = None
            return None
        self._quiet = place if self._quiet is None else self._quiet
        if self._place - self._quiet < self._silence:
            return None
        stopped = Stopped(self._start, self._place)
        self._start, self._first = None, self._place
        return stopped


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


def _invalid(reason: str) -> RequestError:
    return refusal("invalid_audio", f"audio: {reason}")
