"""Sound as it is played: in pieces of 100 ms by the clock, with silence where nothing is said."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from sensorium.server.live.clock import Clock

PIECE_S = 0.1


class Paced:
    """Puts out int16 at `rate` while `run` does, one second a second."""

    def __init__(self, rate: int, put: Callable[[np.ndarray], None], clock: Clock, *, silence: bool) -> None:
        """silence: put zeros where nothing is said; without, such pieces are left out."""
        self._piece = int(rate * PIECE_S)
        self._rate = rate
        self._put = put
        self._clock = clock
        self._silence = silence
        self._waiting: deque[np.ndarray] = deque()
        self._num_waiting = 0
        self._num_played = 0

    @property
    def end_ms(self) -> int:
        """Where sound that is added now will lie on the output's clock."""
        return (self._num_played + self._num_waiting) * 1000 // self._rate

    def add(self, pcm: np.ndarray) -> None:
        if len(pcm):
            self._waiting.append(pcm)
            self._num_waiting += len(pcm)

    def drop(self) -> None:
        """What has not been put out never will be."""
        self._waiting.clear()
        self._num_waiting = 0

    def flush(self) -> None:
        """Put out all that waits, at once."""
        if self._num_waiting:
            self._put(np.concatenate(list(self._waiting)))
            self._num_played += self._num_waiting
            self.drop()

    async def run(self, began_s: float) -> None:
        """began_s: when the first piece began to be played."""
        due = began_s
        while True:
            due += PIECE_S
            await self._clock.sleep_until(due)
            self._play()

    def _play(self) -> None:
        taken: list[np.ndarray] = []
        missing = self._piece
        while missing and self._waiting:
            first = self._waiting.popleft()
            if len(first) > missing:
                self._waiting.appendleft(first[missing:])
                first = first[:missing]
            taken.append(first)
            missing -= len(first)
        self._num_waiting -= self._piece - missing
        self._num_played += self._piece
        if taken or self._silence:
            self._put(np.concatenate([*taken, np.zeros(missing, dtype=np.int16)]))
