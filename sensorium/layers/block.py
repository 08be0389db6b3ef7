"""The pre-norm transformer block that the encoders share."""

from __future__ import annotations

import torch
from torch import nn

from sensorium.layers.attention import Past, Segments, SelfAttention
from sensorium.layers.mlp import Gelu, Mlp


class EncoderBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        hidden: int,
        *,
        eps: float,
        gelu: Gelu,
        bias: tuple[str, ...] = ("q", "k", "v"),
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = SelfAttention(width, num_heads, bias)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, hidden, gelu)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | Segments | Past | None, cache: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), mask, cache)
        return x + self.mlp(self.norm2(x))
