"""Sound between a client's rate and the service's: 16 kHz in, 24 kHz out, without seams between pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import soxr  # pyright: ignore[reportMissingTypeStubs]

from sensorium.errors import RequestError

HEARD_RATE, SPOKEN_RATE = 16_000, 24_000
RATES = (8_000, 16_000, 24_000, 48_000)
MAX_FILLED_S = 3


def read_pcm(data: bytes | memoryview) -> np.ndarray:
    """16-bit little-endian mono -> int16 [n]. Raises RequestError for half a sample."""
    if len(data) % 2:
        raise RequestError("audio: 16-bit samples take an even number of bytes", param="audio")
    return np.frombuffer(data, dtype="<i2")


class Resampled:
    """A stream of int16 from one rate to another."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self._rates = rate_in, rate_out
        self.reset()

    def reset(self) -> None:
        """What comes next has nothing to do with what was before."""
        rate_in, rate_out = self._rates
        self._stream: Any = None
        if rate_in != rate_out:
            self._stream = soxr.ResampleStream(rate_in, rate_out, 1, dtype="int16")

    def take(self, pcm: np.ndarray, *, last: bool = False) -> np.ndarray:
        """last: give out what is still held, and begin anew."""
        if self._stream is None:
            return pcm
        made = self._stream.resample_chunk(pcm.astype(np.int16), last=last)
        if last:
            self.reset()
        return made


class Incoming:
    """A client's sound with its positions: gaps are filled, what was had before is dropped."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.expected = 0
        """The position that comes next, in samples of the client's."""
        self._stream = Resampled(rate, HEARD_RATE)
        self._has_begun = False
        self._offset = 0

    def take(self, position: int, pcm: np.ndarray, *, jumps: bool = False) -> tuple[np.ndarray, int]:
        """int16 at 16 kHz, and how many milliseconds of it are filled in. jumps: a gap here is meant to be one."""
        if jumps or not self._has_begun:
            self._has_begun = True
            self._offset += position - self.expected
            self.expected = position
        gap = position - self.expected
        if gap < 0:
            pcm, gap = pcm[-gap:], 0
        filled = min(gap, MAX_FILLED_S * self.rate)
        self._offset += gap - filled
        self.expected += gap + len(pcm)
        if filled:
            pcm = np.concatenate([np.zeros(filled, dtype=np.int16), pcm])
        return self._stream.take(pcm), filled * 1000 // self.rate

    def position(self, heard: int) -> int:
        """Where a place in samples at 16 kHz lies in the client's."""
        return max(heard * self.rate // HEARD_RATE + self._offset, 0)
