"""Positions on three axes (time, row, column) for prompts with pictures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensorium.types import Span


@dataclass(frozen=True, slots=True)
class Grid:
    """Embeddings of one medium: slices in time, rows, columns. Slices are `seconds` apart at `per_second` positions."""

    slices: int
    rows: int
    columns: int
    seconds: float = 1.0
    per_second: float = 1.0

    def coordinates(self) -> np.ndarray:
        """int64 [3, slices * rows * columns], from zero."""
        places = np.indices((self.slices, self.rows, self.columns)).reshape(3, -1)
        # As the reference: single precision, in this order, without the fraction.
        times = np.arange(self.slices, dtype=np.float32) * np.float32(self.seconds) * np.float32(self.per_second)
        places[0] = times.astype(np.int64)[places[0]]
        return places


def positions(length: int, spans: Sequence[Span], grids: Sequence[Grid]) -> np.ndarray:
    """int64 [3, length]. Text counts on along all axes; after a medium it starts past the largest position so far."""
    out = np.empty((3, length), dtype=np.int64)
    done = start = 0
    for span, grid in zip(spans, grids, strict=True):
        text = span.start - done
        out[:, done : span.start] = np.arange(start, start + text)
        start += text
        places = grid.coordinates()
        out[:, span.start : span.stop] = start + places
        start += int(places.max()) + 1
        done = span.stop
    out[:, done:] = np.arange(start, start + length - done)
    return out
