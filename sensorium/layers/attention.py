"""Attention with one fused projection: causal over the KV cache (decoders), or over a padded batch (encoders).

N packed tokens · H query heads · K key/value heads · D head dim · B batch · L length · W width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels import reference as ops
from sensorium.layers.linear import Linear
from sensorium.types import ModelInputs


class CausalAttention(nn.Module):
    """Decoder attention. With qk_norm, q and k are normalised per head before the rotation (Qwen3)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool = False,
        qk_norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.heads = (num_heads, num_kv_heads)
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.eps = qk_norm_eps
        q, k = num_heads * head_dim, num_kv_heads * head_dim
        self.qkv = Linear(width, q + 2 * k, parts={"q": q, "k": k, "v": k}, bias=qkv_bias)
        self.out = Linear(q, width)
        if qk_norm_eps is not None:
            self.q_norm = nn.Parameter(torch.ones(head_dim), requires_grad=False)
            self.k_norm = nn.Parameter(torch.ones(head_dim), requires_grad=False)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inputs: ModelInputs, kv: torch.Tensor | None
    ) -> torch.Tensor:
        """x [N, W]; cos, sin [N, 1, D] from Rope; kv is this layer's cache, None without one."""
        h, k_heads = self.heads
        qkv = self.qkv(x).unflatten(-1, (h + 2 * k_heads, self.head_dim))
        qk, v = qkv.split((h + k_heads, k_heads), dim=1)
        if self.eps is not None:
            # One normalisation over all heads of q and k; only the weights differ between the two.
            weight = torch.cat((self.q_norm.expand(h, -1), self.k_norm.expand(k_heads, -1)))
            qk = ops.norm(qk, None, self.eps) * weight
        q, k = ops.rope(qk, cos, sin).split((h, k_heads), dim=1)
        return self.out(inputs.plan.attend(q, k, v, kv, self.scale).flatten(1))


class SelfAttention(nn.Module):
    """Encoder attention over [B, L, W]. `bias` names the projections that have one."""

    def __init__(self, width: int, num_heads: int, bias: tuple[str, ...] = ("q", "k", "v")) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width, parts={"q": width, "k": width, "v": width}, bias=bias)
        self.out = Linear(width, width, bias=True)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None, past: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """mask: bool, broadcast to [B, H, L, keys], True where a key is seen.

        past: [k, v] of earlier positions, each [B, H, P, D] (or empty), which is replaced by the longer pair.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            if past:
                k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
            past[:] = k, v
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(out.transpose(1, 2).flatten(2))
