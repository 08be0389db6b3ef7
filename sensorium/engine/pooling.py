"""Embeddings from hidden rows, chunk by chunk.

Shapes: N rows of one chunk · E width of the model.
"""

from __future__ import annotations

import numpy as np
import torch

from sensorium.engine.pooler_config import PoolerConfig
from sensorium.types import PoolingParams


class Pooler:
    """Makes a Pool for each request, all of one kind."""

    def __init__(self, config: PoolerConfig) -> None:
        self.config = config

    def pool(self, params: PoolingParams) -> Pool:
        kind = "ALL" if params.task == "token_embed" else self.config.type
        cut = params.dimensions or self.config.default_dimensions
        return Pool(kind, cut, params.normalize and self.config.normalize)


class Pool:
    """The rows of one sequence on their way to a vector [E] (or [N, E]), chunk by chunk."""

    def __init__(self, kind: str, dimensions: int | None, normalize: bool) -> None:
        self.needs_every_row = kind != "LAST"
        self._kind = kind
        self._dimensions = dimensions
        self._normalize = normalize
        self._parts: list[torch.Tensor] = []
        self._count = 0

    def add(self, rows: torch.Tensor, start: int) -> None:
        """rows [N, E] of the positions from `start` on. A start of 0 begins anew, as after a preemption."""
        if start == 0:
            self._parts, self._count = [], 0
        self._count += rows.shape[0]
        if self._kind == "ALL":
            self._parts.append(rows.float().cpu())
        elif self._kind == "MEAN":
            total = rows.float().sum(0)
            self._parts = [self._parts[0] + total if self._parts else total]
        elif self._kind == "LAST" or start == 0:
            self._parts = [rows[-1 if self._kind == "LAST" else 0].float()]

    def result(self) -> np.ndarray:
        """[E], or [N, E] where every token has its own; float32."""
        found = torch.cat(self._parts) if self._kind == "ALL" else self._parts[0]
        if self._kind == "MEAN":
            found = found / self._count
        found = found[..., : self._dimensions]
        if self._normalize:
            found = torch.nn.functional.normalize(found, dim=-1)
        return found.cpu().numpy()
