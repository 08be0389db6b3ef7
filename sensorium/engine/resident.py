"""A session's sequence: it outlives its units, is never preempted, and may change in the middle. No torch.

Rows and tokens are the same thing here: row i of the KV cache belongs to ids[i], at position i.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

import numpy as np

from sensorium.engine.sequence import Sequence, Status
from sensorium.types import Prompt, Request, Span


@dataclass(frozen=True, slots=True, eq=False)
class RowMoves:
    """Rows of the KV cache to copy, all read before any is written. int64 [n] each.

    sources, targets: slots, block times block size plus offset. before, after: positions, by which keys are rotated.
    """

    sources: np.ndarray
    targets: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @classmethod
    def joined(cls, moves: Seq[RowMoves]) -> RowMoves:
        """Moves to different targets, as one."""
        if len(moves) == 1:
            return moves[0]
        parts = [(one.sources, one.targets, one.before, one.after) for one in moves]
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class Resident(Sequence):
    """`deciding` is the row whose logits the session waits for, -1 for none.

    Known rows behind `computed` wait while it is idle: they are computed together with the next unit. `holes` are rows
    [start, stop) before `computed` that are to be computed anew, in order.
    """

    __slots__ = ("deadline_s", "deciding", "holes", "is_idle", "is_paused")

    resident = True

    def __init__(self, request: Request, max_len: int, deadline_s: float) -> None:
        super().__init__(request, max_len)
        self.status = Status.RESIDENT
        self.deadline_s = deadline_s
        self.deciding = -1
        self.holes: list[tuple[int, int]] = []
        self.is_idle = self.is_paused = False

    @property
    def is_due(self) -> bool:
        """Whether there is something to compute now."""
        return not self.is_paused and bool(self.holes or (len(self.ids) > self.computed and not self.is_idle))

    def append(self, prompt: Prompt, deciding: int | None, deadline_s: float) -> None:
        """Add a unit's rows behind everything known. deciding: index into prompt.ids, or None."""
        at, first = len(self.ids), len(self.media)
        self.ids.extend(prompt.ids)
        for span in sorted(prompt.spans, key=lambda span: span.start):
            self.spans.append(Span(span.start + at, span.length, span.media + first, span.row))
            self.span_starts.append(span.start + at)
        self.media.extend(prompt.media)
        self.deciding = -1 if deciding is None else at + deciding % len(prompt.ids)
        self.deadline_s = deadline_s
        self.first_scheduled_s = None
        self.is_idle = False

    def computed_to(self, start: int, count: int) -> None:
        """Rows [start, start + count) are computed: those of the first hole, or the next ones."""
        if self.holes and self.holes[0][0] == start:
            first, stop = self.holes[0]
            self.holes[:1] = [(first + count, stop)] if first + count < stop else []
        else:
            self.computed = start + count

    def forget_media(self) -> None:
        """Let go of media whose rows are all computed: a session never computes them again."""
        if self.spans and self.spans[-1].stop <= self.computed:
            self.spans, self.span_starts, self.media = [], [], []

    def splice(self, start: int, stop: int, ids: Seq[int]) -> None:
        """Rows [start, stop) become `ids`. What was computed behind stays so; `ids` are to be computed."""
        shift = len(ids) - (stop - start)
        kept = self.computed > stop
        self.ids[start:stop] = ids
        self.spans = [
            span if span.stop <= start else replace(span, start=span.start + shift)
            for span in self.spans
            if span.stop <= start or span.start >= stop
        ]
        self.span_starts = [span.start for span in self.spans]
        if kept:
            self.computed += shift
            parts = [(a, min(b, start)) for a, b in self.holes if a < start]
            parts += [(start, start + len(ids))]
            parts += [(max(a, stop) + shift, b + shift) for a, b in self.holes if b > stop]
            self.holes = [(a, b) for a, b in parts if a < b]
        else:
            self.computed = min(self.computed, start)
            self.holes = [(a, min(b, self.computed)) for a, b in self.holes if a < self.computed]
