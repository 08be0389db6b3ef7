"""Token embedding, which is also the output head where a checkpoint ties the two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Embedding(nn.Module):
    def __init__(self, num: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num, width), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[N] -> [N, width]."""
        return F.embedding(ids, self.weight)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[M, width] -> [M, num], for tied heads."""
        return F.linear(hidden, self.weight)
