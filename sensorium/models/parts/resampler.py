"""Cross-attention that turns the patches of a slice, or of a packed group of frames, into a fixed number of rows.

S slices · L patches · G groups of up to F slices · Q queries · E width · H heads · D head dim
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.layers.linear import Linear
from sensorium.models.parts.siglip import patch_grid, patch_mask

HEAD_DIM = 128


def sincos(positions: torch.Tensor, width: int) -> torch.Tensor:
    """[..., ] -> [..., width]: sines then cosines at frequencies 10000^(-k / (width / 2)), float32."""
    steps = torch.arange(width // 2, dtype=torch.float32, device=positions.device) / (width / 2)
    angles = positions.float()[..., None] / 10000.0**steps
    return torch.cat((angles.sin(), angles.cos()), -1)


class Resampler(nn.Module):
    def __init__(self, num_queries: int, width: int, vision_width: int, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.num_heads = width // HEAD_DIM
        self.query = nn.Parameter(torch.empty(num_queries, width), requires_grad=False)
        self.kv_proj = Linear(vision_width, width) if vision_width != width else nn.Identity()
        self.attn = CrossAttention(width, self.num_heads)
        self.ln_q = nn.LayerNorm(width, norm_eps)
        self.ln_kv = nn.LayerNorm(width, norm_eps)
        self.ln_post = nn.LayerNorm(width, norm_eps)
        self.proj = nn.Parameter(torch.empty(width, width), requires_grad=False)

    def forward(
        self,
        x: torch.Tensor,
        sizes: torch.Tensor,
        temporal_ids: torch.Tensor | None = None,
        groups: torch.Tensor | None = None,
        padded: bool = True,
    ) -> torch.Tensor:
        """x [S, L, v], sizes [S, 2] -> [S, Q, E]; or [G, Q, E] with groups.

        groups [G, F] holds slice numbers, -1 where a group is short; temporal_ids [S] are in 0.1 s, -1 for none.
        padded=False promises that every slice fills L.
        """
        length = x.shape[1]
        values = self.ln_kv(self.kv_proj(x))
        keys = values + self.positions(sizes, length, x.dtype)
        if temporal_ids is not None:
            # A constant over the keys of one slice: it only tells the frames of a group apart.
            time = sincos(temporal_ids, x_width := keys.shape[-1]) * (temporal_ids >= 0)[:, None]
            keys = keys + time.to(x.dtype).view(-1, 1, x_width)
        mask = patch_mask(sizes, length) if padded else None
        if groups is not None:
            frames = groups.clamp(min=0)
            mask = patch_mask(sizes, length)[frames] & (groups >= 0)[..., None]
            keys, values, mask = keys[frames].flatten(1, 2), values[frames].flatten(1, 2), mask.flatten(1)
        out = self.attn(self.ln_q(self.query), keys, values, mask)
        return self.ln_post(out) @ self.proj

    def positions(self, sizes: torch.Tensor, length: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """[S, L, E]: the column in the first half of the channels, the row in the second."""
        # No side is longer than L, so one table of L coordinates serves both axes whatever the shape. It is rounded
        # before it is spread: for 32 slices in float32 half a gigabyte would be written, to be read once.
        table = sincos(torch.arange(length, device=sizes.device), self.query.shape[1] // 2).to(dtype)
        row, col = patch_grid(sizes, length)
        return torch.cat((table[col], table[row]), -1)


class CrossAttention(nn.Module):
    """Multi-head attention in the layout of torch's own module, whose checkpoint names these are."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width), requires_grad=False)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width), requires_grad=False)
        self.out_proj = Linear(width, width, bias=True)

    def forward(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """query [Q, E] shared by the batch, keys and values [B, L, E], mask [B, L] -> [B, Q, E]."""
        inputs = (query.expand(len(keys), -1, -1), keys, values)
        projected = zip(inputs, self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        q, k, v = (F.linear(x, w, b).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x, w, b in projected)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None])
        return self.out_proj(out.transpose(1, 2).flatten(2))
