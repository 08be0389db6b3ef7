"""Steps that no graph holds, once each before anybody waits: their kernels are compiled when they first run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from sensorium.kernels.upload import upload
from sensorium.models.base import Model
from sensorium.types import ModelInputs


def steps_by_kernel(model: Model, plans: Any, block_size: int, most: int, kind: torch.Tensor) -> Iterator[None]:
    """Chunks behind rows that are there, beside one decode, two, four, ..., `most`; on a cache of their own.

    kind: a tensor of the cache's type, on its device.
    """
    shape = (2, 1, block_size, model.num_kv_heads, model.head_dim)
    kv = [torch.zeros(shape, dtype=kind.dtype, device=kind.device)] * model.num_layers
    for power in range(most.bit_length()):
        counts = [1] * (1 << power) + [2, 2]
        lens = [count + 2 for count in counts]
        at = np.concatenate([np.arange(2, length) for length in lens])
        positions = at if model.position_axes == 1 else np.broadcast_to(at, (model.position_axes, len(at)))
        plan = plans(counts, lens, [[0]] * len(counts), block_size, kind.device)
        x = model.embed(torch.zeros(len(at), dtype=torch.int64, device=kind.device))
        rows = upload(np.cumsum(counts) - 1, kind.device)
        model.forward(x, ModelInputs(upload(np.array(positions), kind.device), plan, kv, rows))
        yield
