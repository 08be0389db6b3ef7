"""A sequence: tokens in the engine, how far they are computed, and the blocks that hold them."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_right
from enum import Enum

from sensorium.types import MediaItem, Request, Span


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    RESIDENT = "resident"
    FINISHED = "finished"


class Sequence:
    """Known tokens `ids`, of which the first `computed` have their KV in `blocks`."""

    resident = False

    __slots__ = (
        "_root",
        "blocks",
        "cached",
        "computed",
        "counted",
        "first_scheduled_s",
        "first_token_s",
        "hashes",
        "id",
        "ids",
        "max_len",
        "media",
        "needs_every_row",
        "num_preemptions",
        "num_registered",
        "positions",
        "prompt_len",
        "request",
        "span_starts",
        "spans",
        "status",
    )  # fmt: skip

    def __init__(self, request: Request, max_len: int) -> None:
        prompt = request.prompt
        self.id = request.id
        self.request = request
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
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        # The root separates namespaces and adapters: their blocks can never meet.
        self._root = _digest(_framed(request.namespace.encode()) + _framed((request.adapter or "").encode()))

    @property
    def num_generated(self) -> int:
        return len(self.ids) - self.prompt_len

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
        first, count = len(self.hashes), len(self.ids) // block_size
        if first >= count:
            return self.hashes
        data = memoryview(array("q", self.ids[first * block_size : count * block_size]).tobytes())
        size, parent = len(data) // (count - first), self.hashes[-1] if self.hashes else self._root
        for index in range(count - first):
            parts = [parent, data[index * size : (index + 1) * size]]
            if self.span_starts:
                start = (first + index) * block_size
                for span in self.spans_in(start, start + block_size):
                    where = array("q", (span.start - start, span.length, span.row)).tobytes()
                    parts.append(_framed(self.media[span.media].key) + where)
            parent = _digest(b"".join(parts))
            self.hashes.append(parent)
        return self.hashes


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
