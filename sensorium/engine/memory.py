"""Memory that the allocator keeps back, given to the system again; what stays, kept out of collections."""

from __future__ import annotations

import ctypes
import gc
import sys


def give_back() -> None:
    """Return freed memory to the system. glibc alone keeps hundreds of megabytes after a busy hour; elsewhere a no-op.

    Takes some tens of milliseconds, so it is for idle moments.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def settle() -> None:
    """Take what there is now for lasting: a full collection that looks at all of it holds up every stream for 50 to
    110 ms.

    Collections of what comes later are then quick, and so frequent that little garbage waits for one.
    """
    gc.collect()
    gc.freeze()
