"""Callers that work in their own threads, a few at a time."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager


class Turns:
    """A context for threads, of which `most` are inside at a time."""

    def __init__(self, most: int) -> None:
        self._free = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._coming = 0

    def coming(self) -> int:
        """Threads that have entered and not come out: also those that wait for a turn, or have left it for a while."""
        return self._coming

    def __enter__(self) -> None:
        with self._lock:
            self._coming += 1
        try:
            self._free.acquire()
        except BaseException:  # an interrupt: __exit__ will not be called
            self._gone()
            raise

    def __exit__(self, *_: object) -> None:
        self._free.release()
        self._gone()

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
