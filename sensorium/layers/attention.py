"""Attention with one fused projection: causal over the KV cache (decoders), or over a padded batch (encoders).

N packed tokens · H query heads · K key/value heads · D head dim · B batch · L length · W width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels import select
from sensorium.kernels.encoder import Segments
from sensorium.kernels.reference import HeadNorms
from sensorium.kernels.wide import widened
from sensorium.layers.linear import Linear
from sensorium.types import ModelInputs


class CausalAttention(nn.Module):
    """The two products of a decoder's attention and what lies between them.

    With qk_norm_eps, q and k are normalised per head before the rotation (Qwen3).
    """

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

    @property
    def norms(self) -> HeadNorms | None:
        return None if self.eps is None else HeadNorms(self.q_norm, self.k_norm, self.eps)

    def mix(
        self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inputs: ModelInputs, kv: torch.Tensor | None
    ) -> torch.Tensor:
        """What comes between the two projections: [N, (H + 2 K) D] -> [N, H D].

        cos, sin [N, 1, D] from Rope; kv is this layer's cache, None without one.
        """
        return inputs.plan.attend_qkv(qkv, self.heads, self.norms, cos, sin, kv, self.scale)


@dataclass(frozen=True, slots=True)
class Past:
    """Attention of the next frames of streams to all of their own, which lie in a cache [slots, frames, 2, H, D].

    slots int64 [B]: where each stream is. rows int64 [B L]: the places of the new frames in the flattened cache. seen
    bool [B, 1, 1, keys]: which of a slot's first frames are the stream's, the new ones included.
    """

    slots: torch.Tensor
    rows: torch.Tensor
    seen: torch.Tensor

    @classmethod
    def of(cls, slots: torch.Tensor, at: torch.Tensor, num_keys: int, slot_frames: int) -> Past:
        """at int64 [B, L]: numbers of the new frames in their streams, all below num_keys."""
        keys = torch.arange(num_keys, device=at.device)
        rows = (slots[:, None] * slot_frames + at).flatten()
        return cls(slots, rows, (keys <= at[:, -1:])[:, None, None])

    def exchange(self, new: torch.Tensor, cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values [B, L, 2, H, D] of the new frames; those of all frames, [B, H, keys, D] each."""
        count, (kept, made) = self.seen.shape[-1], widened(cache.flatten(2), new.flatten(2))
        kept.flatten(0, 1).index_copy_(0, self.rows, made.flatten(0, 1))
        kept = kept[:, :count].index_select(0, self.slots).view(cache.dtype)
        k, v = kept.view(-1, count, *cache.shape[2:]).permute(2, 0, 3, 1, 4)
        return k, v


def key_padding(
    num: torch.Tensor, x: torch.Tensor, *, padded: bool = True, chunk: int = 0
) -> torch.Tensor | Segments | None:
    """What SelfAttention needs to see only the first num [B] positions of each row of x [B, L, W].

    padded=False promises that num is L everywhere. chunk: as in Segments.
    A mask, or None where all is seen; but on a GPU in 16 bits segments, as the kernels that take a mask are half again
    as slow (on an H200, SigLIP: 29 ms against 20). There the padding of a row is a segment of its own.
    """
    batch, length = x.shape[:2]
    chunk = chunk if 0 < chunk < length else 0
    if not padded and not chunk:
        return None
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16):
        ops = select.encoder_ops(x.device, x.dtype).implementation
        if ops.chunks or not chunk:
            starts = torch.arange(0, batch * length, length, device=x.device)
            bounds = torch.stack((starts, starts + num), 1).flatten() if padded else starts
            return Segments(F.pad(bounds, (0, 1), value=batch * length).int(), length, chunk)
    index = torch.arange(length, device=x.device)
    if chunk:
        ends = (index // chunk + 1) * chunk
        return ((index < num[:, None])[:, None] & (index < ends[:, None]))[:, None]
    return (index < num[:, None])[:, None, None]


class SelfAttention(nn.Module):
    """Encoder attention over [B, L, W]. `bias` names the projections that have one."""

    def __init__(self, width: int, num_heads: int, bias: tuple[str, ...] = ("q", "k", "v")) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width, parts={"q": width, "k": width, "v": width}, bias=bias)
        self.out = Linear(width, width, bias=True)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | Segments | Past | None, cache: torch.Tensor | None = None
    ) -> torch.Tensor:
        """mask: bool, broadcast to [B, H, L, keys], True where a key is seen; or segments, or the past in a cache."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        if isinstance(mask, Segments):
            q, k, v = qkv.flatten(0, 1).unbind(1)
            ops = select.encoder_ops(x.device, x.dtype).implementation
            return self.out(ops.attend(q, k, v, mask).view(*x.shape[:2], -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if isinstance(mask, Past):
            assert cache is not None, "there is no past without a cache"
            k, v = mask.exchange(qkv[:, :, 1:], cache)
            mask = mask.seen
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(out.transpose(1, 2).flatten(2))
