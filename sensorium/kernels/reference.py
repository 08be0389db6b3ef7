"""Every op as plain torch: what the CPU runs and what other kernels are tested against.

Shapes: N packed tokens · H query heads · K key/value heads · G = H / K · D head dim · B sequences · W blocks per table
E width · I hidden width of the feed-forward block
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F


class Norm(Protocol):
    """The part of an RMSNorm layer that kernels read."""

    @property
    def weight(self) -> torch.Tensor: ...
    @property
    def eps(self) -> float: ...


class Product(Protocol):
    """The part of a Linear layer that kernels read: y = x W^T + b."""

    @property
    def weight(self) -> torch.Tensor: ...
    @property
    def bias(self) -> torch.Tensor | None: ...
    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


class HeadNorms(NamedTuple):
    """Normalisation of each head's queries and keys before the rotation: weights [D]."""

    q: torch.Tensor
    k: torch.Tensor
    eps: float


class Ops:
    """What a decoder layer is made of besides attention. A plan names the set that goes with it."""

    head_product: (
        Callable[[torch.Tensor], tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]] | None] | None
    ) = None
    """Makes a product for the tall weight of an output head; see kernels.triton_ops."""

    @staticmethod
    def norm(x: torch.Tensor, rms: Norm) -> torch.Tensor:
        """x [N, E], normalised."""
        return norm(x, rms.weight, rms.eps)

    @staticmethod
    def norm_linear(x: torch.Tensor, rms: Norm, product: Product) -> torch.Tensor:
        """product(norm(x)), x [N, E]."""
        return product(norm(x, rms.weight, rms.eps))

    @staticmethod
    def norm_gated(x: torch.Tensor, rms: Norm, gate_up: Product) -> torch.Tensor:
        """silu(gate) * up of gate, up = gate_up(norm(x)): [N, E] -> [N, I]."""
        return act_mul(gate_up(norm(x, rms.weight, rms.eps)))

    @staticmethod
    def linear_add(x: torch.Tensor, product: Product, residual: torch.Tensor) -> torch.Tensor:
        """residual + product(x). The residual [N, E] may be overwritten."""
        return residual + product(x)


def store_kv(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    """Write k, v [N, K, D] at `slots` [N] of kv [2, blocks, block_size, K, D]."""
    keys, values = kv.view(2, -1, kv.shape[3], kv.shape[4]).unbind()
    keys.index_copy_(0, slots, k)
    values.index_copy_(0, slots, v)


class Attends:
    """attend_qkv for plans that can attend."""

    ops = Ops
    decode_plan: Any = None
    """The plan of a decode step that a CUDA graph can hold, where there is one; see kernels.triton_decode."""
    chunk_plan: Any = None
    """The same for a step with chunks of prompts; see kernels.triton_paged."""

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        raise NotImplementedError

    def attend_qkv(
        self,
        qkv: torch.Tensor,
        heads: tuple[int, int],
        norms: HeadNorms | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        kv: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """qkv [N, (H + 2 K) D], cos and sin [N, 1, D] -> [N, H D]: split, normalise, rotate, store, attend."""
        h, k_heads = heads
        qk, v = qkv.unflatten(-1, (h + 2 * k_heads, -1)).split((h + k_heads, k_heads), dim=1)
        if norms is not None:
            # One normalisation over all heads of q and k; only the weights differ between the two.
            weight = torch.cat((norms.q.expand(h, -1), norms.k.expand(k_heads, -1)))
            qk = norm(qk, None, norms.eps) * weight
        q, k = rope(qk, cos, sin).split((h, k_heads), dim=1)
        return self.attend(q, k, v, kv, scale).flatten(1)


class PagedPlan(Attends):
    """Attention over the paged KV cache for a step that mixes prefill chunks and decodes.

    counts[i] new tokens of sequence i end at its length lens[i]; tables[i] are its blocks. Sequences that add one
    token share one padded attention call; longer chunks run one by one.
    """

    def __init__(
        self,
        counts: Sequence[int],
        lens: Sequence[int],
        tables: Sequence[Sequence[int]],
        block_size: int,
        device: torch.device,
    ) -> None:
        slots: list[int] = []
        self.chunks: list[tuple[int, int, int, torch.Tensor]] = []
        singles: list[int] = []
        start = 0
        for count, length, table in zip(counts, lens, tables, strict=True):
            if count == 1:
                block, at = divmod(length - 1, block_size)
                slots.append(table[block] * block_size + at)
                singles.append(start)
                start += 1
                continue
            blocks = np.asarray(table[: -(-length // block_size)])
            at = np.arange(length - count, length)
            slots.extend((blocks[at // block_size] * block_size + at % block_size).tolist())
            self.chunks.append((start, count, length, torch.from_numpy(blocks).to(device)))
            start += count
        self.slots = torch.tensor(slots, device=device)
        self.rows: torch.Tensor | None = None
        if singles:
            self.rows = torch.tensor(singles, device=device) if self.chunks else None
            picked = [i for i, count in enumerate(counts) if count == 1]
            self._plan_singles([lens[i] for i in picked], [tables[i] for i in picked], block_size, device)

    def _plan_singles(
        self, lens: Sequence[int], tables: Sequence[Sequence[int]], block_size: int, device: torch.device
    ) -> None:
        width = -(-max(lens) // block_size)
        padded: list[int] = []
        for table in tables:
            padded.extend(table[:width])
            padded.extend([0] * (width - len(table)))
        self.single_blocks = torch.tensor(padded, device=device)
        if min(lens) == width * block_size:
            self.single_mask = None
            return
        seen = np.arange(width * block_size) < np.asarray(lens)[:, None]
        # Additive, as a boolean mask would be turned into this in every layer.
        bias = np.where(seen, np.float32(0), np.float32(-np.inf))
        self.single_mask = torch.from_numpy(bias[:, None, None, :]).to(device)

    @property
    def decode_only(self) -> bool:
        return not self.chunks

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """q [N, H, D], k and v [N, K, D] -> [N, H, D]. Stores k and v first."""
        assert kv is not None
        store_kv(k, v, kv, self.slots)
        if self.decode_only:
            return self._attend_singles(q, kv, scale)
        out = torch.empty_like(q)
        for start, count, length, blocks in self.chunks:
            keys, values = kv.index_select(1, blocks).flatten(1, 2)[:, :length].unbind()
            out[start : start + count] = _causal(q[start : start + count], keys, values, scale)
        if self.rows is not None:
            out[self.rows] = self._attend_singles(q[self.rows], kv, scale)
        return out

    def _attend_singles(self, q: torch.Tensor, kv: torch.Tensor, scale: float) -> torch.Tensor:
        b, h, d = q.shape
        kh = kv.shape[3]
        keys, values = kv.index_select(1, self.single_blocks).view(2, b, -1, kh, d).transpose(2, 3).unbind()
        mask = None if self.single_mask is None else self.single_mask.to(q.dtype)
        # The G query heads of one KV head attend as if they were G query positions: no key is repeated.
        out = F.scaled_dot_product_attention(q.view(b, kh, h // kh, d), keys, values, attn_mask=mask, scale=scale)
        return out.reshape(b, h, d)


class TablePlan(PagedPlan):
    """One new token per row, with lengths and tables on the device: kernels.triton_decode's plan in plain torch.

    lens int32 [B] counts the new token, 0 for rows of padding; tables int32 [B, W]. What padding stores goes to the
    last place of the cache, which must be nobody's.
    """

    def __init__(self, lens: torch.Tensor, tables: torch.Tensor, block_size: int) -> None:
        self.chunks, self.rows = [], None
        at = (lens - 1).clamp(min=0).long()
        block = tables.gather(1, (at // block_size)[:, None])[:, 0]
        self.slots = torch.where(lens > 0, block * block_size + at % block_size, -1)
        self.single_blocks = tables.flatten()
        seen = torch.arange(tables.shape[1] * block_size, device=lens.device) <= at[:, None]
        self.single_mask = torch.where(seen, 0.0, -torch.inf)[:, None, None]

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        assert kv is not None
        places = kv.shape[1] * kv.shape[2]
        store_kv(k, v, kv, torch.where(self.slots < 0, places - 1, self.slots))
        return self._attend_singles(q, kv, scale)


class PackedPlan(Attends):
    """Causal attention inside each of B equally padded sequences, with no cache: training and one-shot checks.

    Packed tokens are B x L; right padding needs no mask because causal rows never look right.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        b = self.batch
        q, k, v = (x.view(b, -1, x.shape[1], x.shape[2]).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2).flatten(0, 1)


def _causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Last rows of a sequence: q [n, H, D] against k, v [L, K, D], row i seeing keys 0 .. L - n + i."""
    n, length = q.shape[0], k.shape[0]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    if n == length:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
    else:
        mask = torch.ones(n, length, dtype=torch.bool, device=q.device).tril(length - n)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa)
    return out[0].transpose(0, 1)


def norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Root-mean-square normalisation over the last axis."""
    return F.rms_norm(x, x.shape[-1:], weight, eps)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x [N, H, D] by cos, sin [N, 1, D]: channel i turns with channel i + D/2.

    The first half of sin is negated, so that one roll by D/2 replaces the usual split, negation and concatenation.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def act_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up for x [N, 2I] = gate, up."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up
