"""Rows of attention state in one pool: those of a voice are shared by its streams, each stream adds its own.

Pool row: what one frame leaves behind in every layer. Row 0 is all zeros and stands for "no frame".
"""

from __future__ import annotations

import torch

from sensorium.kernels.wide import widened

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
    ) -> None:
        self._lead, self._tail = lead, tail
        self.data = [torch.zeros((*lead, 1, *tail), device=device, dtype=dtype) for _ in range(parts)]
        self._free: list[int] = []
        self.grown = 0
        """How often `data` has been replaced."""

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

    def reserve(self, rows: int) -> None:
        """Room for so many rows in all, so that nothing is copied while it is filled."""
        if rows >= self.rows:
            self._grow(rows + 1)

    def copy(self, source: int, to: int) -> None:
        axis = len(self._lead)
        for part in self.data:
            part.select(axis, to).copy_(part.select(axis, source))

    def free(self, rows: list[int]) -> None:
        self._free += rows

    def _grow(self, rows: int) -> None:
        old, axis = self.rows, len(self._lead)
        for i, part in enumerate(self.data):
            grown = torch.zeros((*self._lead, rows, *self._tail), device=part.device, dtype=part.dtype)
            grown.narrow(axis, 0, old).copy_(part)
            self.data[i] = grown
        self.grown += 1
        # Taken from the end: low rows first.
        self._free[:0] = range(rows - 1, old - 1, -1)


class KeyView:
    """What the frames of one batch see: earlier rows of a pool, and the rows they fill themselves.

    B streams · T new frames each · L frames seen, theirs included, shorter ones padded in front · F numbers per row
    """

    def __init__(self, pool: RowPool, seen: torch.Tensor, new: int, padded: bool = False) -> None:
        """seen int64 [B, L]: rows in order; the last `new` of them are the rows to fill.

        padded: 0 stands for no row, and -r among the new ones for a row r that is filled and that nobody sees.
        """
        self._pool = pool
        self.batch, self.length = seen.shape
        self.mask = (seen > 0)[:, None, None] if padded else None
        """bool [B, 1, 1, L], False at padding; None where there is none."""
        rows = seen.abs() if padded else seen
        self._seen, self._new = rows.reshape(-1), rows[:, self.length - new :].reshape(-1)

    def extend(self, part: int, layer: int, kv: torch.Tensor) -> torch.Tensor:
        """Stores kv [2, B, T, F] and returns all that is seen, [2, B, L, F]."""
        state, made = widened(self._pool.data[part][layer], kv.flatten(1, 2))
        state.index_copy_(1, self._new, made)
        return state.index_select(1, self._seen).view(kv.dtype).view(2, self.batch, self.length, -1)
