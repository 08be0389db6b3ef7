"""The pre-norm transformer block that the encoders share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from sensorium.kernels import select
from sensorium.kernels.encoder import Segments
from sensorium.layers.attention import Past, SelfAttention
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


def run_blocks(
    blocks: Iterable[nn.Module], norm: nn.LayerNorm, x: torch.Tensor, mask: torch.Tensor | Segments | None
) -> torch.Tensor:
    """norm of x [B, L, W] after EncoderBlocks; each sum is made together with the normalisation behind it."""
    ops = select.encoder_ops_for(x.device, x.dtype)
    added = None
    for block in blocks:
        assert isinstance(block, EncoderBlock)
        x, normed = ops.add_norm(x, added, block.norm1)
        x, normed = ops.add_norm(x, block.attention(normed, mask), block.norm2)
        added = block.mlp(normed)
    return ops.add_norm(x, added, norm)[1]
