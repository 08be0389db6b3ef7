"""From a stream of sound and pictures to units of one second, and which of them to leave out when the server is behind.

Nothing here waits or computes: the clock is an argument, and what comes out is data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sensorium.errors import OverloadedError
from sensorium.server.live.events import Late

RATE = 16_000
UNIT_SAMPLES = RATE
MAX_WAITING = 3
MAX_AHEAD_S = 60.0
SILENT_RMS = 0.004
"""Below it nobody speaks: -48 dB."""


@dataclass(slots=True, eq=False)
class LiveUnit:
    """A second of a session. samples: float32 [16000]; frames: files, oldest first; heard_s: when it was complete."""

    samples: np.ndarray
    frames: list[bytes]
    texts: list[str]
    force_listen: bool
    force_speak: bool
    end: int
    """The place behind its last sample, counted from the session's first."""
    heard_s: float

    @property
    def is_silent(self) -> bool:
        return float(np.sqrt(np.mean(np.square(self.samples)))) < SILENT_RMS


@dataclass(slots=True)
class UnitCutter:
    """Cuts by counting samples. max_frames: pictures kept of a unit, the newest ones."""

    max_frames: int = 1
    muted: bool = False
    end: int = 0
    """Samples heard."""
    _chunks: list[np.ndarray] = field(default_factory=list[np.ndarray])
    _held: int = 0
    _frames: deque[bytes] = field(default_factory=deque[bytes])
    _texts: list[str] = field(default_factory=list[str])
    _force_listen: bool = False
    _force_speak: bool = False

    def hear(self, pcm: np.ndarray, now_s: float) -> list[LiveUnit]:
        """More sound, int16 [n] at 16 kHz; the units that it completes."""
        units: list[LiveUnit] = []
        while self._held + len(pcm) >= UNIT_SAMPLES:
            cut = UNIT_SAMPLES - self._held
            self._keep(pcm[:cut])
            units.append(self._cut(now_s))
            pcm = pcm[cut:]
        self._keep(pcm)
        return units

    def see(self, frame: bytes) -> int:
        """A picture for the unit that is being filled; how many older ones make way."""
        self._frames.append(frame)
        dropped = max(len(self._frames) - self.max_frames, 0)
        for _ in range(dropped):
            self._frames.popleft()
        return dropped

    def read(self, text: str) -> None:
        """Typed words for the unit that is being filled."""
        self._texts.append(text)

    def force_listen(self) -> None:
        """The unit that is being filled listens, whatever the model would do."""
        self._force_listen = True

    def force_speak(self) -> None:
        """The unit that is being filled speaks, if the model knows what."""
        self._force_speak = True

    def _keep(self, pcm: np.ndarray) -> None:
        if len(pcm):
            chunk: np.ndarray = np.zeros(len(pcm), dtype=np.int16) if self.muted else np.array(pcm, dtype=np.int16)
            self._chunks.append(chunk)
            self._held += len(pcm)
            self.end += len(pcm)

    def _cut(self, now_s: float) -> LiveUnit:
        samples = np.concatenate(self._chunks).astype(np.float32) / 32768
        unit = LiveUnit(
            samples, list(self._frames), self._texts, self._force_listen, self._force_speak, self.end, now_s
        )
        self._chunks, self._held, self._texts, self._force_listen, self._force_speak = [], 0, [], False, False
        self._frames.clear()
        return unit


class Backlog:
    """Complete units that the model has not taken. Keeps no more than MAX_WAITING, and says what it leaves out."""

    def __init__(self) -> None:
        self._units: deque[LiveUnit] = deque()

    def __len__(self) -> int:
        return len(self._units)

    def put(self, unit: LiveUnit) -> Late | None:
        """Pictures go first, then a silent unit, then the oldest; typed words move on to the next unit."""
        self._units.append(unit)
        if len(self._units) < MAX_WAITING:
            return None
        frames = 0
        for waiting in list(self._units)[:-1]:
            frames += len(waiting.frames)
            waiting.frames.clear()
        if len(self._units) == MAX_WAITING:
            return Late(frames=frames) if frames else None
        index = next((i for i, waiting in enumerate(self._units) if waiting.is_silent), 0)
        dropped = self._units[index]
        del self._units[index]
        heir = self._units[min(index, len(self._units) - 1)]
        heir.texts[:0] = dropped.texts
        heir.force_listen |= dropped.force_listen
        heir.force_speak |= dropped.force_speak
        return Late(len(dropped.samples) / RATE, frames + len(dropped.frames))

    def take(self) -> LiveUnit:
        return self._units.popleft()

    def put_back(self, units: Sequence[LiveUnit]) -> None:
        """Units that were taken in vain, in their order, before all others."""
        self._units.extendleft(reversed(units))

    def clear(self) -> None:
        self._units.clear()


class Pace:
    """How far sound runs ahead of the clock. Having been late is no credit."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s
        self._ahead_s = 0.0

    def check(self, samples: int, now_s: float) -> float:
        """How far ahead it is with so many more samples at 16 kHz. Raises OverloadedError where that is too far."""
        ahead = max(self._ahead_s - (now_s - self._now_s), 0.0) + samples / RATE
        if ahead > MAX_AHEAD_S:
            error = OverloadedError(
                f"audio: it runs more than {MAX_AHEAD_S:g} s ahead of the clock; send it as it is recorded",
                param="audio",
            )
            error.code = "buffer_full"
            raise error
        return ahead

    def take(self, samples: int, now_s: float) -> None:
        """As check, and counts them."""
        self._ahead_s, self._now_s = self.check(samples, now_s), now_s
