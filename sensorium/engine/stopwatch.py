"""How long work takes on a device, found out without waiting for it; and waiting that can be broken off."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from sensorium.engine.histogram import Histograms

_NAP_S = 0.0002


def wait_for(is_over: Callable[[], bool], waits: Callable[[], bool]) -> bool:
    """Wait until something is over, as long as `waits` says so -> whether it is."""
    while not is_over():
        if not waits():
            return False
        time.sleep(_NAP_S)
    return True


class Stopwatch:
    """Times stretches of work into histograms in seconds.

    On a GPU work has only been queued when its call returns: events around it are read once the device has come by.
    """

    def __init__(self, device: torch.device, seconds: Histograms) -> None:
        self._is_gpu = device.type == "cuda"
        self._seconds = seconds
        self._open: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def time(self, label: str) -> Generator[None, None, None]:
        """What raises is not counted."""
        if self._is_gpu:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._open.append((label, begin, end))
        else:
            start = time.perf_counter()
            yield
            self._seconds.observe(label, time.perf_counter() - start)

    def read(self) -> None:
        """Take in what has ended on the device meanwhile."""
        while self._open and self._open[0][2].query():
            label, begin, end = self._open.popleft()
            self._seconds.observe(label, begin.elapsed_time(end) / 1000)


def timed(watch: Stopwatch | None, label: str) -> AbstractContextManager[None]:
    """watch.time, where there is a watch."""
    return nullcontext() if watch is None else watch.time(label)
