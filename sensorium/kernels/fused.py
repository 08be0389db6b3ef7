"""What a decoder hands to compiled kernels. Imports none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """float32. Matrices are [n_out, n_in]; gate_up is gate on top of up."""

    norm1: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    out: torch.Tensor
    norm2: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor

    @property
    def matrices(self) -> tuple[torch.Tensor, ...]:
        return self.qkv, self.out, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scale: float
    layers: Sequence[LayerWeights]
    norm: torch.Tensor
    head: torch.Tensor
    """[vocabulary, width]"""
