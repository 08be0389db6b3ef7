"""Ten minutes by a clock that the test moves: sound that goes out is played at its time, sound that comes in is cut at
its own."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest
from live_sessions.tools import ManualClock

from sensorium.server.live.paced import Paced
from sensorium.server.live.sound import Incoming
from sensorium.server.live.units import UnitCutter

MINUTES = 600
"""Ten of them, in seconds."""


class Output:
    """Sound at 24 kHz as a client gets it, all of it in `played`."""

    def __init__(self, *, silence: bool = True) -> None:
        self.clock = ManualClock(0.0)
        self.pieces: list[np.ndarray] = []
        self.paced = Paced(24_000, self.pieces.append, self.clock, silence=silence)

    async def __aenter__(self) -> Output:
        self._task = asyncio.create_task(self.paced.run(0.0))
        await self.at(0.0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def at(self, seconds: float) -> None:
        """Let everything happen up to a time."""
        self.clock.advance(seconds - self.clock.now())
        for _ in range(4):  # the clock wakes the loop, that the sleeper, that the output
            await asyncio.sleep(0)

    @property
    def played(self) -> np.ndarray:
        return np.concatenate(self.pieces)


def test_ten_minutes_of_sound_go_out_without_drift():
    chance, said = random.Random(1), list[tuple[int, int]]()

    async def talk() -> np.ndarray:
        async with Output() as output:
            now = 0.0
            while now < MINUTES:
                now = min(now + chance.choice([0.003, 0.1, 0.4, 1.7]), MINUTES)
                await output.at(now + 1e-6)
                assert abs(sum(map(len, output.pieces)) / 24_000 - now) <= 0.1 + 1e-6, "as much as there was time"
                if chance.random() < 0.3:
                    said.append((output.paced.end_ms * 24, chance.randrange(1, 30_000)))
                    output.paced.add(np.full(said[-1][1], len(said), np.int16))
            return output.played

    played = asyncio.run(talk())
    assert len(played) == MINUTES * 24_000
    assert len(said) > 100
    for number, (place, length) in enumerate(said, 1):
        if place + length < len(played) - 24:  # the last ones may not have been played to their end
            near = max(place - 24, 0)
            at = near + np.flatnonzero(played[near : place + length + 24] == number)
            assert len(at) == length, "where it was said that it would lie, to the millisecond"
            assert at[-1] - at[0] == length - 1, "in one piece"


@pytest.mark.parametrize("silence", [True, False])
def test_what_is_cut_short_is_silent_within_a_piece(silence: bool):
    async def talk() -> np.ndarray:
        async with Output(silence=silence) as output:
            output.paced.add(np.ones(48_000, np.int16))
            await output.at(0.55)
            output.paced.drop()
            await output.at(3.0 + 1e-6)
            return output.played

    played = asyncio.run(talk())
    assert np.count_nonzero(played) == 12_000, "nothing of what had not gone out"
    assert len(played) == (72_000 if silence else 12_000)


@pytest.mark.parametrize("rate", [8_000, 24_000, 48_000])
def test_ten_minutes_of_sound_come_in_without_drift(rate: int):
    incoming, cutter = Incoming(rate), UnitCutter()
    chance, place, units = random.Random(2), 0, 0
    while place < MINUTES * rate:
        size = min(chance.choice([1, rate // 50 + 1, rate]), MINUTES * rate - place)
        pcm, filled = incoming.take(place, np.zeros(size, np.int16))
        place += size
        units += len(cutter.hear(pcm, 0.0))
        assert not filled
        assert 0 <= place / rate - cutter.end / 16_000 < 0.2, "what the filter holds does not grow"
        assert abs(incoming.position(cutter.end) - place) < 0.2 * rate
    assert units == MINUTES - 1, "the end of the last one is still in the filter"
