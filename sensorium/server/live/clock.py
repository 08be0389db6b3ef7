"""Time for live sessions, as an argument: tests bring a clock that stands still until they move it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    """Seconds that only grow; never the time of day, which may jump."""

    def now(self) -> float: ...

    async def sleep_until(self, when_s: float) -> None: ...


class MonotonicClock:
    """The machine's own."""

    def now(self) -> float:
        return time.monotonic()

    async def sleep_until(self, when_s: float) -> None:
        await asyncio.sleep(max(when_s - time.monotonic(), 0))


async def within(clock: Clock, seconds: float, work: Awaitable[T]) -> T:
    """What `work` returns. Raises asyncio.TimeoutError, and `work` is cancelled, when it takes longer."""
    task = asyncio.ensure_future(work)
    alarm = asyncio.ensure_future(clock.sleep_until(clock.now() + seconds))
    try:
        await asyncio.wait((task, alarm), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise asyncio.TimeoutError
        return task.result()
    finally:
        alarm.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
