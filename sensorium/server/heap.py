"""Memory of large request bodies, given back."""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable

LARGE, PERIOD_S = 4 << 20, 5.0
"""Bytes received since the heap was last trimmed that make it worth while, and how often it may be."""


def find_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim, which gives whole free pages back wherever they lie; None where there is another library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None


class Heap:
    """Trims the process's heap, in a thread, some time after large bodies came in.

    glibc keeps freed pages that lie between blocks still in use.
    """

    def __init__(self, trim: Callable[[int], int] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """trim: glibc's by default, if there is one."""
        self._trim = find_trim() if trim is None else trim
        self._clock = clock
        self._received = 0
        self._trimmed_s = clock()

    def took(self, received: int) -> None:
        """Note that an exchange which received so many bytes is over."""
        self._received += received
        if self._trim is None or self._received < LARGE or self._clock() - self._trimmed_s < PERIOD_S:
            return
        self._received, self._trimmed_s = 0, self._clock()
        asyncio.get_running_loop().run_in_executor(None, self._trim, 0)
