"""A sequence: tokens in the engine, how far they are computed, and the blocks that hold them."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from enum import Enum

from sensorium.types import MediaItem, Prompt, Request, Span


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    RESIDENT = "resident"
    FINISHED = "finished"


class Sequence:
    """Known tokens `ids`, of which the first `computed` have their KV in `blocks`.

    A sequence with `resident=True` belongs to a session: it outlives its units, is never preempted, and is scheduled
    by `deadline_s`.
    """

    __slots__ = (
        "_root",
        "blocks",
        "cached",
        "computed",
        "counted",
        "deadline_s",
        "first_scheduled_s",
        "first_token_s",
        "hashes",
        "id",
        "idle",
        "ids",
        "max_len",
        "media",
        "needs_every_row",
        "num_preemptions",
        "num_registered",
        "positions",
        "prompt_len",
        "request",
        "resident",
        "span_starts",
        "spans",
        "status",
    )  # fmt: skip

    def __init__(self, request: Request, max_len: int, *, resident: bool = False) -> None:
        prompt = request.prompt
        self.id = request.id
        self.request = request
        self.resident = resident
        self.ids: list[int] = list(prompt.ids)
        self.spans: list[Span] = sorted(prompt.spans, key=lambda span: span.start)
        self.span_starts = [span.start for span in self.spans]
        self.media: list[MediaItem] = list(prompt.media)
        self.positions = prompt.positions
        self.prompt_len = len(self.ids)
        self.max_len = max_len
        self.computed = 0
        self.cached = 0
        # Prompt tokens before this were counted as computed or found; a preempted sequence computes them again.
        self.counted = 0
        self.num_preemptions = 0
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []
        self.num_registered = 0
        # Whether something is read off every prompt position, so that none may come from the prefix cache.
        self.needs_every_row = False
        self.status = Status.WAITING
        self.idle = False
        self.deadline_s = 0.0
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        # The root separates namespaces and adapters: their blocks can never meet.
        self._root = _digest(_framed(request.namespace.encode()) + _framed((request.adapter or "").encode()))

    @property
    def num_generated(self) -> int:
        return len(self.ids) - self.prompt_len

    def append_unit(self, prompt: Prompt, deadline_s: float) -> None:
        """Add a session's next unit after everything known so far."""
        at, first = len(self.ids), len(self.media)
        self.ids.extend(prompt.ids)
        for span in sorted(prompt.spans, key=lambda span: span.start):
            self.spans.append(Span(span.start + at, span.length, span.media + first, span.row))
            self.span_starts.append(span.start + at)
        self.media.extend(prompt.media)
        self.prompt_len = len(self.ids)
        self.deadline_s = deadline_s
        self.idle = False

    @property
    def is_due(self) -> bool:
        """Whether known tokens wait to be computed. Between units a session's last token may wait for the next."""
        return not self.idle and len(self.ids) > self.computed

    def spans_in(self, start: int, stop: int) -> list[Span]:
        """Spans that overlap positions [start, stop), in order."""
        found: list[Span] = []
        index = max(bisect_right(self.span_starts, start) - 1, 0)
        for span in self.spans[index:]:
            if span.start >= stop:
                break
            if span.stop > start:
                found.append(span)
        return found

    def extend_hashes(self, block_size: int) -> list[bytes]:
        """Hash chain over the full blocks of known tokens: parent, token ids, and the media rows inside."""
        while (len(self.hashes) + 1) * block_size <= len(self.ids):
            start = len(self.hashes) * block_size
            stop = start + block_size
            parts = [self.hashes[-1] if self.hashes else self._root, array("q", self.ids[start:stop]).tobytes()]
            if self.span_starts:
                for span in self.spans_in(start, stop):
                    where = array("q", (span.start - start, span.length, span.row)).tobytes()
                    parts.append(_framed(self.media[span.media].key) + where)
            self.hashes.append(_digest(b"".join(parts)))
        return self.hashes


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
