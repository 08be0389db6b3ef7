"""Where turns of speech begin and end in sound that arrives in pieces of any size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sensorium.server.realtime.schema import SemanticVad, ServerVad
from sensorium.server.realtime.turn_end import longest_ms
from sensorium.vad import RATE, WINDOW, Detector

LOOK_MS = 192
"""How long a pause lasts before semantic_vad has it judged."""


@dataclass(frozen=True, slots=True)
class Started:
    """Somebody speaks; at: place of the first sample that counts, padding included."""

    at: int


@dataclass(frozen=True, slots=True)
class Paused:
    """They may have finished: `wait` says how long to wait for more. start, at: the places of what was said."""

    start: int
    at: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """They have been silent for long enough; start, at: the places of what belongs to it."""

    start: int
    at: int


class Turns:
    """Places are counted in samples at 16 kHz. Nothing depends on when samples arrive."""

    def __init__(self, settings: ServerVad | SemanticVad, place: int, detector: Detector) -> None:
        """place: where the next sample lies."""
        self._detector = detector
        self._is_judged = isinstance(settings, SemanticVad)
        if isinstance(settings, SemanticVad):
            vad, silence_ms = ServerVad(), longest_ms(settings.eagerness)
        else:
            vad, silence_ms = settings, settings.silence_duration_ms
        self._threshold = vad.threshold
        self._ends_below = max(vad.threshold - 0.15, 0.05)
        self._padding = vad.prefix_padding_ms * RATE // 1000
        self._longest = self._silence = silence_ms * RATE // 1000
        self._rest = np.zeros(0, dtype=np.float32)
        self._first = self._place = place
        self._start: int | None = None
        self._quiet: int | None = None

    @property
    def needed(self) -> int:
        """Samples before this place will never belong to a turn."""
        return max(self._place - self._padding, self._first) if self._start is None else self._start

    def feed(self, samples: np.ndarray) -> None:
        """More sound [n]; `next` says what is in it."""
        self._rest = np.concatenate([self._rest, samples])

    def next(self) -> Started | Paused | Stopped | None:
        """The next thing that happens in what was fed; None where there is no more. After Paused call `wait`."""
        for start in range(0, len(self._rest) - WINDOW + 1, WINDOW):
            event = self._judge(self._rest[start : start + WINDOW])
            if event is not None:
                self._rest = self._rest[start + WINDOW :]
                return event
        self._rest = self._rest[len(self._rest) // WINDOW * WINDOW :]
        return None

    def wait(self, milliseconds: int) -> None:
        """How long the pause that is under way must last to end the turn."""
        self._silence = milliseconds * RATE // 1000

    def skip(self, place: int) -> None:
        """What lies before it belongs to something else."""
        self._first = max(self._first, place)

    def _judge(self, window: np.ndarray) -> Started | Paused | Stopped | None:
        probability = self._detector.probability(window)
        place, self._place = self._place, self._place + WINDOW
        if self._start is None:
            if probability < self._threshold:
                return None
            self._start, self._quiet = max(place - self._padding, self._first), None
            return Started(self._start)
        if probability >= self._ends_below:
            self._quiet, self._silence = None, self._longest
            return None
        self._quiet = place if self._quiet is None else self._quiet
        lasted = self._place - self._quiet
        look = LOOK_MS * RATE // 1000
        if self._is_judged and lasted - WINDOW < look <= lasted:
            return Paused(self._start, self._quiet)
        if lasted < self._silence:
            return None
        stopped = Stopped(self._start, self._place)
        self._start, self._first, self._silence = None, self._place, self._longest
        return stopped
