"""Cross-attention that turns the patches of a slice, or of a packed group of frames, into a fixed number of rows.

S slices · L patches · G groups of up to F slices · Q queries · E width · H heads · D head dim · v width of patches
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels import select
from sensorium.layers.linear import Linear
from sensorium.models.parts.siglip import patch_grid, patch_mask

HEAD_DIM = 128


def sincos(positions: torch.Tensor, width: int) -> torch.Tensor:
    """[..., ] -> [..., width]: sines then cosines at frequencies 10000^(-k / (width / 2)), float32."""
    steps = torch.arange(width // 2, dtype=torch.float32, device=positions.device) / (width / 2)
    angles = positions.float()[..., None] / 10000.0**steps
    return torch.cat((angles.sin(), angles.cos()), -1)


@dataclass(frozen=True, slots=True)
class Folded:
    """A Resampler's weights multiplied with one another, where what stands between them is linear.

    Its queries are constants, and with W = kv_proj less the mean over its outputs, the normalised values of a patch x
    are (W x) * f * gain + shift with one number f = 1 / sqrt(|W x|^2 / E + eps). So scores and sums of values can be
    taken of the patches themselves: a sixth of the products.
    """

    root: torch.Tensor
    """[v, v]: root x is as long as W x."""
    queries: torch.Tensor
    """[Q H, v]: what scores patches, to base 2. What adds the same to all patches is left out."""
    values: torch.Tensor
    """[H, v, D]: from a head's sum of patches to its output."""
    constant: torch.Tensor
    """[E], which is added to those outputs."""
    positions: torch.Tensor
    """[2, Q H, E / 2] float32: queries in front of the encodings of row and column."""
    by_place: dict[int, torch.Tensor]
    """Number of places P -> scores of so many rows and columns, [2, Q H, P] float32. All stay, as graphs read them."""

    @classmethod
    def of(cls, r: Resampler) -> Folded:
        heads, dtype = r.num_heads, r.query.dtype
        projection = torch.eye(r.query.shape[1]).to(r.query) if isinstance(r.kv_proj, nn.Identity) else r.kv_proj.weight
        w = projection.float() - projection.float().mean(0)
        w_q, w_k, w_v = r.attn.in_proj_weight.float().chunk(3)
        b_q, _, b_v = r.attn.in_proj_bias.float().chunk(3)
        query = F.layer_norm(r.query.float(), r.query.shape[1:], r.ln_q.weight.float(), r.ln_q.bias.float(), r.ln_q.eps)
        q = F.linear(query, w_q, b_q).unflatten(1, (heads, -1)) * (HEAD_DIM**-0.5 / math.log(2))
        asked = torch.einsum("qhd,hde->qhe", q, w_k.unflatten(0, (heads, -1))).flatten(0, 1)
        gain, shift = r.ln_kv.weight.float(), r.ln_kv.bias.float()
        values = F.linear(w_v * gain, w.t()).unflatten(0, (heads, -1)).transpose(1, 2)
        return cls(
            root=torch.linalg.qr(w, mode="r").R.to(dtype),
            queries=F.linear(asked * gain, w.t()).to(dtype),
            values=values.to(dtype).contiguous(),
            constant=F.linear(shift, w_v, b_v).to(dtype),
            positions=torch.stack(asked.chunk(2, 1)[::-1]).contiguous(),
            by_place={},
        )

    def places(self, count: int) -> torch.Tensor:
        """Scores of at least `count` rows and columns."""
        count = max(1 << (count - 1).bit_length(), 1024)
        if count not in self.by_place:
            index = torch.arange(count, device=self.positions.device)
            table = sincos(index, self.positions.shape[-1]).to(self.positions.dtype)
            self.by_place[count] = self.positions @ table.t()
        return self.by_place[count]


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
        self._folded: Folded | None = None

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
        padded=False promises that every slice fills L. On a GPU in 16 bits the weights may change no more afterwards.
        """
        if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and groups is None and temporal_ids is None:
            return self.forward_folded(x, sizes)
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

    def forward_folded(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        """As forward without times and groups, by other products; see Folded."""
        if self._folded is None:
            self._folded = Folded.of(self)
        folded, (count, length, _) = self._folded, x.shape
        by_row, by_column = folded.places(length)
        norm = torch.linalg.vector_norm(F.linear(x, folded.root), dim=-1, dtype=torch.float32)
        factors = torch.rsqrt(norm.square() / self.query.shape[1] + self.ln_kv.eps)
        queries, keys = folded.queries.expand(count, -1, -1), x.transpose(1, 2)
        # Scores of 16 bits would be weights of a few percent's error.
        in_float: Any = torch.ops.aten.bmm.dtype
        scores = torch.bmm(queries, keys) if x.dtype == torch.float32 else in_float(queries, keys, torch.float32)
        ops = select.encoder_ops_for(x.device, x.dtype)
        weights = ops.grid_weights(scores, factors, by_row, by_column, sizes, x.dtype)
        mixed = torch.bmm(weights, x).view(-1, self.num_heads, x.shape[-1])
        heads = torch.bmm(mixed.transpose(0, 1), folded.values).transpose(0, 1)
        out = self.attn.out_proj(heads.flatten(1) + folded.constant).view(count, -1, self.query.shape[1])
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
