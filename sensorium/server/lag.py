"""How late the event loop is: whatever blocks it holds up every stream."""

from __future__ import annotations

import asyncio

from sensorium.engine.histogram import Histogram

PERIOD_S = 0.1
BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class LoopLag:
    """Sets itself a timer every PERIOD_S and notes how much later than asked it rings."""

    def __init__(self) -> None:
        self.histogram = Histogram(BOUNDS_S)
        self._loop: asyncio.AbstractEventLoop | None = None

    def watch(self) -> None:
        """Watch the running loop, once."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._wait(loop)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(PERIOD_S, self._ring, loop, loop.time() + PERIOD_S)

    def _ring(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        self.histogram.observe(max(loop.time() - due_s, 0.0))
        if loop is self._loop:
            self._wait(loop)
