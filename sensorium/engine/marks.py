"""What preparing media counts for /metrics, and notes for the trace of the request that it is done for."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from sensorium.engine.histogram import MEDIA_S, Buckets, Histograms

Phase = Literal["fetch", "decode", "preprocess"]
PHASES: tuple[Phase, ...] = ("fetch", "decode", "preprocess")


@dataclass(frozen=True, slots=True)
class Mark:
    """A stretch of a request's time, on the monotonic clock. label: such as the modality."""

    name: str
    start_s: float
    stop_s: float
    label: str = ""


MARKS: ContextVar[list[Mark] | None] = ContextVar("marks", default=None)
"""Where marks of the current request go; None where nobody asks for them."""


def mark(name: str, start_s: float, stop_s: float, label: str = "") -> None:
    marks = MARKS.get()
    if marks is not None:
        marks.append(Mark(name, start_s, stop_s, label))


@dataclass(frozen=True, slots=True)
class MediaTotals:
    """Since the start, by modality. Equal items of one request count once."""

    items: Mapping[str, int] = field(default_factory=dict[str, int])
    """Prepared, or found in the cache."""
    bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    """Of the files they came as."""
    errors: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    """Modality and code of the error -> items refused."""
    seconds: Mapping[Phase, Mapping[str, Buckets]] = field(default_factory=dict[Phase, Mapping[str, Buckets]])
    """Bounds MEDIA_S of histogram.py."""


class MediaCounters:
    """Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._errors: Counter[tuple[str, str]] = Counter()
        self._seconds = {phase: Histograms(MEDIA_S) for phase in PHASES}

    def done(self, modality: str) -> None:
        with self._lock:
            self._items[modality] += 1

    def fetched(self, modality: str, num_bytes: int) -> None:
        with self._lock:
            self._bytes[modality] += num_bytes

    def failed(self, modality: str, code: str) -> None:
        with self._lock:
            self._errors[modality, code] += 1

    def took(self, phase: Phase, modality: str, start_s: float, stop_s: float) -> None:
        with self._lock:
            self._seconds[phase].observe(modality, stop_s - start_s)
        mark(f"media.{phase}", start_s, stop_s, modality)

    def totals(self) -> MediaTotals:
        with self._lock:
            seconds: dict[Phase, Mapping[str, Buckets]] = {phase: self._seconds[phase].freeze() for phase in PHASES}
            return MediaTotals(self._items.copy(), self._bytes.copy(), self._errors.copy(), seconds)
