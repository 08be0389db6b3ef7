"""Where `sensorium talk` hears and plays: the sound card, or a file that is written."""

from __future__ import annotations

import importlib
import queue
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sensorium.errors import UnsupportedError

RATE, SPOKEN_RATE = 16_000, 24_000
PIECE = RATE // 10
"""Samples that are sent at once: 100 ms."""


class WaveFile:
    """What is said, at the time at which it would be heard: while the unit after it comes in."""

    def __init__(self) -> None:
        self._samples = bytearray()
        self._end = -1

    def play(self, unit_end: int, pcm: bytes) -> None:
        if unit_end != self._end:
            self._end = unit_end
            start = 2 * (unit_end * SPOKEN_RATE // RATE + SPOKEN_RATE)
            self._samples.extend(bytes(max(start - len(self._samples), 0)))
        self._samples.extend(pcm)

    def flush(self) -> None:
        """What is written stays: it was sent before the turn was cancelled."""

    def save(self, path: Path) -> None:
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SPOKEN_RATE)
            file.writeframes(bytes(self._samples))


class SoundCard:
    """Microphone and loudspeaker, through the package sounddevice. Use as a context manager."""

    def __init__(self) -> None:
        """Raises UnsupportedError where there is no such package, or no sound card."""
        try:
            device: Any = importlib.import_module("sounddevice")
        except (ImportError, OSError) as error:
            raise UnsupportedError(
                f"no sound card: {error}. `pip install 'sensorium[talk]'` (and PortAudio), or give --input FILE"
            ) from None
        self._heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._playing = bytearray()
        self._lock = threading.Lock()
        try:
            self._microphone = device.RawInputStream(
                samplerate=RATE, channels=1, dtype="int16", blocksize=PIECE, callback=self._take
            )
            self._loudspeaker = device.RawOutputStream(
                samplerate=SPOKEN_RATE, channels=1, dtype="int16", callback=self._give
            )
        except device.PortAudioError as error:
            raise UnsupportedError(f"no sound card: {error}; give --input FILE") from None

    def __enter__(self) -> SoundCard:
        self._microphone.start()
        self._loudspeaker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._microphone.close()
        self._loudspeaker.close()

    def heard(self) -> Iterator[bytes]:
        """100 ms at a time, as they come."""
        while True:
            yield self._heard.get()

    def play(self, unit_end: int, pcm: bytes) -> None:
        with self._lock:
            self._playing.extend(pcm)

    def flush(self) -> None:
        with self._lock:
            self._playing.clear()

    def _take(self, data: Any, frames: int, when: Any, status: Any) -> None:
        self._heard.put(bytes(data))

    def _give(self, data: Any, frames: int, when: Any, status: Any) -> None:
        size = 2 * frames
        with self._lock:
            piece = bytes(self._playing[:size])
            del self._playing[:size]
        data[:] = piece.ljust(size, b"\0")
