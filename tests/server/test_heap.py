"""When the server gives memory back."""

from __future__ import annotations

import asyncio
import gc
import weakref

from sensorium.engine.memory import settle
from sensorium.server.heap import LARGE, PERIOD_S, Heap, find_trim


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def threads_done() -> None:
    """Until the threads have done what they were given."""
    await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    await asyncio.get_running_loop().shutdown_default_executor()


def test_the_heap_is_trimmed_after_large_bodies_and_not_too_often():
    calls: list[int] = []
    clock = Clock()

    async def bodies() -> None:
        heap = Heap(lambda pad: calls.append(pad) or 1, clock)
        heap.took(LARGE)
        assert not calls, "too early"
        clock.now_s = PERIOD_S
        heap.took(1)
        heap.took(LARGE)
        clock.now_s = 1.5 * PERIOD_S
        heap.took(LARGE)
        clock.now_s = 3 * PERIOD_S
        await threads_done()

    asyncio.run(bodies())
    assert calls == [0]


def test_small_bodies_trim_nothing():
    calls: list[int] = []
    clock = Clock()

    async def bodies() -> None:
        heap = Heap(lambda pad: calls.append(pad) or 1, clock)
        clock.now_s = PERIOD_S
        for _ in range(100):
            heap.took(LARGE // 200)
        await threads_done()

    asyncio.run(bodies())
    assert not calls


def test_the_library_s_own_is_found_or_nothing_is_done():
    trim = find_trim()
    assert trim is None or trim(0) in (0, 1)


class Node:
    """Refers to itself."""

    def __init__(self) -> None:
        self.own = self


def test_garbage_goes_and_what_lasts_is_not_looked_at_again():
    kept, frozen = Node(), gc.get_freeze_count()
    gone = weakref.ref(Node())
    try:
        settle()
        assert gone() is None
        assert gc.get_freeze_count() > frozen
        assert not any(one is kept for one in gc.get_objects())
    finally:
        gc.unfreeze()
