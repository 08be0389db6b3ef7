"""Speech as files and streams: 16-bit mono samples in, piece by piece, bytes of a usual format out.

Nothing seeks in what is written, so every piece can be sent as soon as it is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import av
import numpy as np
import soxr
from av.error import BlockingIOError as NeedsMore
from av.error import EOFError as Drained
from av.filter import Graph

from sensorium.errors import RequestError

RATE = 24_000
"""Samples a second of what a model speaks."""
SoundFormat = Literal["wav", "pcm", "mp3", "opus", "aac", "flac"]
MIN_SPEED, MAX_SPEED = 0.25, 4.0
_UNKNOWN = 0xFFFF_FFFF
_SLOWEST = 0.5
"""What one tempo filter can do."""


@dataclass(frozen=True, slots=True)
class _Container:
    media_type: str
    name: str = ""
    codec: str = ""
    options: dict[str, str] = field(default_factory=dict[str, str])


_CONTAINERS: dict[SoundFormat, _Container] = {
    "wav": _Container("audio/wav"),
    "pcm": _Container("audio/pcm"),
    "mp3": _Container("audio/mpeg", "mp3", "libmp3lame", {"write_xing": "0", "id3v2_version": "0"}),
    # Pages of 100 ms: the muxer's own are of a second, which nobody would hear meanwhile.
    "opus": _Container("audio/ogg", "ogg", "libopus", {"page_duration": "100000"}),
    "aac": _Container("audio/aac", "adts", "aac"),
    "flac": _Container("audio/flac", "flac", "flac"),
}


def media_type(format_: SoundFormat) -> str:
    """As HTTP names it."""
    return _CONTAINERS[format_].media_type


class SoundEncoder:
    """One sound at 24 kHz: `write` for every piece, then `finish`. Calls may come from any thread, one at a time."""

    def __init__(self, format_: SoundFormat, speed: float = 1.0, num_samples: int | None = None) -> None:
        """speed: of the voice, at its own pitch. num_samples: of the whole, for the head of a WAVE file; None where it
        is not known yet."""
        self._tempo = None if speed == 1.0 else Tempo(speed)
        self._head = _wave_head(num_samples) if format_ == "wav" else b""
        self._sink = _Sink()
        self._container: Any = None
        self._stream: Any = None
        kind = _CONTAINERS[format_]
        if kind.name:
            self._container = av.open(self._sink, "w", format=kind.name, options=kind.options)
            self._stream = self._container.add_stream(kind.codec, rate=RATE, layout="mono")

    def write(self, pcm: bytes) -> bytes:
        """16-bit little-endian samples -> what of the file is ready, which may be nothing."""
        return self._encode(pcm if self._tempo is None else self._tempo.write(pcm))

    def finish(self) -> bytes:
        """The rest. Nothing can be written any more."""
        data = b"" if self._tempo is None else self._encode(self._tempo.finish())
        if self._container is None:
            return data + self._take_head()
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        return data + self._sink.take()

    def _encode(self, pcm: bytes) -> bytes:
        if self._container is None:
            return self._take_head() + pcm
        if pcm:
            for packet in self._stream.encode(_frame(pcm)):
                self._container.mux(packet)
        return self._sink.take()

    def _take_head(self) -> bytes:
        head, self._head = self._head, b""
        return head


def encode(pcm: bytes, format_: SoundFormat) -> bytes:
    """A whole file."""
    encoder = SoundEncoder(format_, num_samples=len(pcm) // 2)
    return encoder.write(pcm) + encoder.finish()


class Tempo:
    """Makes speech faster or slower and leaves its pitch."""

    def __init__(self, speed: float) -> None:
        """Raises RequestError outside MIN_SPEED to MAX_SPEED."""
        if not MIN_SPEED <= speed <= MAX_SPEED:
            raise RequestError(f"speed: must be {MIN_SPEED:g} to {MAX_SPEED:g}", param="speed")
        self._graph = Graph()
        last: Any = self._graph.add_abuffer(format="s16", sample_rate=RATE, layout="mono")
        for step in _steps(speed):
            tempo = self._graph.add("atempo", f"{step:.6f}")
            last.link_to(tempo)
            last = tempo
        last.link_to(self._graph.add("abuffersink"))
        self._graph.configure()

    def write(self, pcm: bytes) -> bytes:
        if pcm:
            self._graph.push(_frame(pcm))
        return self._take()

    def finish(self) -> bytes:
        self._graph.push(None)
        return self._take()

    def _take(self) -> bytes:
        pieces: list[bytes] = []
        while True:
            try:
                frame: Any = self._graph.pull()
            except (NeedsMore, Drained):
                return b"".join(pieces)
            pieces.append(frame.to_ndarray().tobytes())


class Wire:
    """Speech as a realtime client wants it: 16-bit samples at another rate, or G.711, without seams between pieces."""

    def __init__(self, codec: Literal["pcm", "mulaw", "alaw"], rate: int, speed: float = 1.0) -> None:
        self._codec = codec
        self._tempo = None if speed == 1.0 else Tempo(speed)
        self._resampler: Any = None if rate == RATE else soxr.ResampleStream(RATE, rate, 1, dtype="int16")

    def write(self, pcm: bytes) -> bytes:
        return self._sent(pcm if self._tempo is None else self._tempo.write(pcm), last=False)

    def finish(self) -> bytes:
        return self._sent(b"" if self._tempo is None else self._tempo.finish(), last=True)

    def _sent(self, pcm: bytes, *, last: bool) -> bytes:
        samples = np.frombuffer(pcm, "<i2")
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=last)
        if self._codec == "pcm":
            return samples.astype("<i2").tobytes()
        return (to_mulaw(samples) if self._codec == "mulaw" else to_alaw(samples)).tobytes()


def to_mulaw(samples: np.ndarray) -> np.ndarray:
    """int16 [n] -> uint8 [n]. Source: ITU-T G.711."""
    size = np.minimum(np.abs(samples.astype(np.int32)), 32635) + 132
    exponent = np.frexp(size)[1] - 8
    return (~((samples < 0) << 7 | exponent << 4 | (size >> (exponent + 3)) & 15)).astype(np.uint8)


def to_alaw(samples: np.ndarray) -> np.ndarray:
    """int16 [n] -> uint8 [n]. Source: ITU-T G.711."""
    negative = samples < 0
    size = np.where(negative, ~samples.astype(np.int32), samples) >> 3
    exponent = np.maximum(np.frexp(size)[1] - 5, 0)
    mantissa = np.where(exponent > 0, size >> exponent, size >> 1) & 15
    return ((~negative << 7 | exponent << 4 | mantissa) ^ 0x55).astype(np.uint8)


def _steps(speed: float) -> Iterable[float]:
    """Factors that one filter each can do."""
    while speed < _SLOWEST:
        yield _SLOWEST
        speed /= _SLOWEST
    yield speed


def _frame(pcm: bytes) -> Any:
    frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2")[None], format="s16", layout="mono")
    frame.sample_rate = RATE
    return frame


def _wave_head(num_samples: int | None) -> bytes:
    """Of a WAVE file; one of unknown length claims the greatest."""
    size = _UNKNOWN if num_samples is None else 2 * num_samples
    whole = _UNKNOWN if num_samples is None else 36 + size
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", whole, b"WAVE") + form + struct.pack("<4sI", b"data", size)


class _Sink:
    """A file that is only written to, and emptied in between."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data
