"""Histograms that are fed in batches, and the bounds of those that engine and preparer keep. No torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
MEDIA_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
UNIT_S = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 5, 10)
UNIT_STAGES = ("queue", "prefill", "decode", "total", "first_sound", "sound")
COMPILE_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram at one moment: values per bucket, the last one without a bound, and their sum. () is all zero."""

    counts: tuple[int, ...] = ()
    sum: float = 0.0

    def cumulative(self, bounds: Sequence[float]) -> list[tuple[str, float]]:
        """Bound and number of values up to it, as the exposition format wants them."""
        total, result = 0, list[tuple[str, float]]()
        counts = self.counts or (0,) * (len(bounds) + 1)
        for bound, count in zip((*map(float, bounds), "+Inf"), counts, strict=True):
            total += count
            result.append((str(bound), total))
        return result


class Histogram:
    """Counts per bucket. Unlike prometheus_client's own it takes many equal values in one call."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._frozen: Buckets | None = None

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self.bounds, value)] += times
        self._sum += value * times
        self._frozen = None

    def freeze(self) -> Buckets:
        frozen = self._frozen
        if frozen is None:
            frozen = self._frozen = Buckets(tuple(self._counts), self._sum)
        return frozen


class Histograms:
    """Histograms of one meaning, by label."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self._by_label: dict[str, Histogram] = {}

    def observe(self, label: str, value: float) -> None:
        self._by_label.setdefault(label, Histogram(self.bounds)).observe(value)

    def clear(self) -> None:
        self._by_label.clear()

    def freeze(self) -> dict[str, Buckets]:
        return {label: histogram.freeze() for label, histogram in self._by_label.copy().items()}
