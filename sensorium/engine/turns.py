"""Callers that work in their own threads, a few at a time, beside an engine that shares the interpreter with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

_NAP_S = 0.0005
_LONGEST_HOLD_S = 0.01


class Turns:
    """A context for threads, of which `most` are inside at a time."""

    def __init__(self, most: int) -> None:
        self._free = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._goes_on = threading.Event()
        self._goes_on.set()
        self._has_enough: Callable[[], bool] | None = None
        """While some are gathered."""
        self._coming = 0

    def coming(self) -> int:
        """Threads that have entered and not come out: also those that wait for a turn, or have left it for a while."""
        return self._coming

    def hold(self) -> None:
        """Until let_go nobody begins, for 10 ms at most: who is inside ends what he does.

        For the engine's thread while it launches a step. Behind every operation on its device it asks for the
        interpreter again, and beside four who prepare it got it so late that launching took 34 and 60 ms instead of 6
        and 15, in which the device waited.
        """
        self._goes_on.clear()

    def let_go(self) -> None:
        self._goes_on.set()

    def gather(self, has_enough: Callable[[], bool]) -> None:
        """Let those come who are about to, until `has_enough`; then they are held."""
        self.let_go()
        self._has_enough = has_enough
        while self.coming() and not has_enough():
            time.sleep(_NAP_S)
        with self._lock:
            self._has_enough = None
            self.hold()

    def came(self) -> None:
        """Somebody has come: where that is enough, no other keeps the interpreter from who gathers, and may not know
        for milliseconds."""
        with self._lock:
            if self._has_enough is not None and self._has_enough():
                self.hold()

    def __enter__(self) -> None:
        with self._lock:
            self._coming += 1
        try:
            self._take()
        except BaseException:  # an interrupt: __exit__ will not be called
            self._gone()
            raise

    def __exit__(self, *_: object) -> None:
        self._free.release()
        self._gone()

    def _take(self) -> None:
        self._free.acquire()
        try:
            self._goes_on.wait(_LONGEST_HOLD_S)
        except BaseException:
            self._free.release()
            raise

    def _gone(self) -> None:
        with self._lock:
            self._coming -= 1

    @contextmanager
    def left(self) -> Generator[None, None, None]:
        """Inside, another thread may take this one's turn: for work that is done elsewhere."""
        self._free.release()
        try:
            yield
        finally:
            self._free.acquire()
