"""Rows of attention state in one pool: those of a voice are shared by its streams, each stream adds its own.

Pool row: what one frame leaves behind in every layer. Row 0 is all zeros and stands for "no frame".
"""

from __future__ import annotations

import torch

_FIRST_ROWS = 64


class RowPool:
    """parts tensors of [*lead, rows, *tail]; in parts, because growing copies one of them at a time."""

    def __init__(
        self,
        parts: int,
        lead: tuple[int, ...],
        tail: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        rows: int = 0,
    ) -> None:
        self._lead, self._tail = lead, tail
        self.data = [torch.zeros((*lead, 1, *tail), device=device, dtype=dtype) for _ in range(parts)]
        self._free: list[int] = []
        if rows:
            self._grow(rows + 1)

    @property
    def rows(self) -> int:
        return self.data[0].shape[len(self._lead)]

    @property
    def used(self) -> int:
        return self.rows - 1 - len(self._free)

    @property
    def bytes_per_row(self) -> int:
        return sum(part.nbytes for part in self.data) // self.rows

    def allocate(self, count: int) -> list[int]:
        """Rows with what their last owner left in them."""
        if count > len(self._free):
            self._grow(max(self.rows * 3 // 2, self.rows + count - len(self._free), _FIRST_ROWS))
        # One by one: owners give rows back whenever they are collected, which may be now.
        return [self._free.pop() for _ in range(count)]

    def free(self, rows: list[int]) -> None:
        self._free += rows

    def _grow(self, rows: int) -> None:
        old, axis = self.rows, len(self._lead)
        for i, part in enumerate(self.data):
            grown = torch.zeros((*self._lead, rows, *self._tail), device=part.device, dtype=part.dtype)
            grown.narrow(axis, 0, old).copy_(part)
            self.data[i] = grown
        # Taken from the end: low rows first.
        self._free[:0] = range(rows - 1, old - 1, -1)


class KeyView:
    """What the frames of one batch see: earlier rows of a pool, and the rows they fill themselves.

    B streams · T new frames each · L frames seen, theirs included, shorter ones padded in front · F numbers per row
    """

    def __init__(self, pool: RowPool, seen: list[list[int]], new: list[list[int]]) -> None:
        """seen: per stream the rows of earlier frames, in order. new: per stream T rows to fill."""
        self._pool = pool
        self.batch = len(new)
        self.length = max(map(len, seen)) + len(new[0])
        device = pool.data[0].device
        padded = [[0] * (self.length - len(old) - len(own)) + old + own for old, own in zip(seen, new, strict=True)]
        self._seen = torch.tensor(padded, device=device).flatten()
        self._new = torch.tensor(new, device=device).flatten()
        ragged = len({len(old) for old in seen}) > 1
        self.mask = (self._seen != 0).view(self.batch, 1, 1, self.length) if ragged else None
        """bool [B, 1, 1, L], False at padding; None where there is none."""

    def extend(self, part: int, layer: int, kv: torch.Tensor) -> torch.Tensor:
        """Stores kv [2, B, T, F] and returns all that is seen, [2, B, L, F]."""
        state = self._pool.data[part][layer]
        state.index_copy_(1, self._new, kv.flatten(1, 2).to(state.dtype))
        return state.index_select(1, self._seen).view(2, self.batch, self.length, -1)
