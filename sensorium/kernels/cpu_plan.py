"""The attention plan of a step on the CPU: read as arrays by the compiled decoder, or as tensors by the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from sensorium.kernels.reference import Attends, PagedPlan

# Queries of a prefill chunk that attend together.
UNIT_ROWS = 32


@dataclass(frozen=True, slots=True)
class PlanArrays:
    """int64, dense. N packed tokens · B sequences · U units of up to UNIT_ROWS tokens · W blocks per table."""

    slots: np.ndarray
    """[N]: where each token's keys and values go"""
    units: np.ndarray
    """[U, 4]: first row, number of rows, position of the first, sequence"""
    tables: np.ndarray
    """[B, W], padded with zeros"""


class CpuPlan(Attends):
    """The same plan as the reference's, made when and as it is needed."""

    def __init__(
        self,
        counts: Sequence[int],
        lens: Sequence[int],
        tables: Sequence[Sequence[int]],
        block_size: int,
        device: torch.device,
    ) -> None:
        self.counts, self.lens, self.block_size = counts, lens, block_size
        self._tables, self._device = tables, device

    @property
    def decode_only(self) -> bool:
        return all(count == 1 for count in self.counts)

    @cached_property
    def reference(self) -> PagedPlan:
        return PagedPlan(self.counts, self.lens, self._tables, self.block_size, self._device)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """q [N, H, D], k and v [N, K, D] -> [N, H, D]. Stores k and v first."""
        return self.reference.attend(q, k, v, kv, scale)

    @cached_property
    def arrays(self) -> PlanArrays:
        tables = np.zeros((len(self._tables), max(map(len, self._tables))), dtype=np.int64)
        for row, table in zip(tables, self._tables, strict=True):
            row[: len(table)] = table
        counts, lens = np.asarray(self.counts), np.asarray(self.lens)
        sequence, offset = np.arange(len(counts)), np.zeros(len(counts), dtype=np.int64)
        seq, at = sequence, lens - 1
        if counts.max() > 1:
            seq, token = _spread(sequence, counts)
            at = (lens - counts)[seq] + token
            sequence, offset = _spread(sequence, -(-counts // UNIT_ROWS))
            offset = offset * UNIT_ROWS
        slots = tables[seq, at // self.block_size] * self.block_size + at % self.block_size
        first = np.cumsum(counts) - counts
        rows = np.minimum(UNIT_ROWS, counts[sequence] - offset)
        units = np.stack((first[sequence] + offset, rows, (lens - counts)[sequence] + offset, sequence), 1)
        return PlanArrays(slots, np.ascontiguousarray(units), tables)


def _spread(numbers: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each number as often as `times` says, and which of its repeats each is."""
    repeated = np.repeat(numbers, times)
    return repeated, np.arange(len(repeated)) - np.repeat(np.cumsum(times) - times, times)
