"""Computations in few fixed shapes: their inputs lie in fixed memory, and on a GPU each shape is a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch

from sensorium.kernels.capture import capture
from sensorium.kernels.upload import upload
from sensorium.models.token2wav.rows import RowPool

BATCHES = (1, 2, 4, 8, 12, 16, 24, 32)
"""Streams that a shape is for; smaller batches are padded."""
Compute = Callable[..., Any]
_Made = tuple[int, list[torch.Tensor], torch.cuda.CUDAGraph, Any]


def batch_for(streams: int) -> int:
    return next(size for size in BATCHES if size >= streams)


class FixedShapes:
    """pools: whose rows the computations read and write; when one has grown, their graphs are recorded anew."""

    def __init__(self, pools: Sequence[RowPool], device: torch.device) -> None:
        self._pools, self._device = pools, device
        self._made: dict[Hashable, _Made] = {}
        self.keys: set[Hashable] = set()
        """Those of all runs so far."""
        self._memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._stream: torch.cuda.Stream | None = None

    def run(self, key: Hashable, compute: Compute, blank: np.ndarray, numbers: np.ndarray, *rest: torch.Tensor) -> Any:
        """compute(numbers, *rest) with the numbers on the device; the next run may overwrite what it returns.

        compute: the same for a key, and so are the shapes of what it is given. blank: numbers of a batch that nobody
        hears; recording a graph computes that.
        """
        self.keys.add(key)
        if self._memory is None:
            return compute(upload(numbers, self._device), *rest)
        age = sum(pool.grown for pool in self._pools)
        made = self._made.get(key)
        if made is None or made[0] != age:
            inputs = [upload(blank, self._device), *(torch.zeros_like(one) for one in rest)]
            made = self._made[key] = self._record(compute, inputs, age)
        _, inputs, graph, result = made
        for ours, given in zip(inputs, (pinned(numbers), *rest), strict=True):
            ours.copy_(given, non_blocking=True)
        graph.replay()
        return result

    def _record(self, compute: Compute, inputs: list[torch.Tensor], age: int) -> _Made:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device, priority=-1)  # which its kernels keep in every replay
        graph, result = capture(lambda: compute(*inputs), self._memory, self._stream)
        return age, inputs, graph, result


def pinned(numbers: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(numbers).pin_memory()
