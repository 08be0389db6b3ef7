"""Memory that the allocator keeps back after use, given to the system again."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Return freed memory to the system. glibc alone keeps hundreds of megabytes after a busy hour; elsewhere a no-op.

    Takes some tens of milliseconds, so it is for idle moments.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
