"""Every op as plain torch: what the CPU runs and what other kernels are tested against.

Shapes: N packed tokens · H query heads · K key/value heads · G = H / K · D head dim · B sequences · W blocks per table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


def store_kv(k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> None:
    """Write k, v [N, K, D] at `slots` [N] of kv [2, blocks, block_size, K, D]."""
    flat = kv.view(2, -1, kv.shape[3], kv.shape[4])
    flat[0].index_copy_(0, slots, k)
    flat[1].index_copy_(0, slots, v)


class PagedPlan:
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
        slots: list[np.ndarray] = []
        self.chunks: list[tuple[int, int, int, torch.Tensor]] = []
        single_rows, single_lens, single_tables = [], [], []
        start = 0
        for count, length, table in zip(counts, lens, tables, strict=True):
            if count == 1:
                at = length - 1
                slots.append(np.array([table[at // block_size] * block_size + at % block_size]))
                single_rows.append(start)
                single_lens.append(length)
                single_tables.append(table[: -(-length // block_size)])
            else:
                at = np.arange(length - count, length)
                blocks = np.asarray(table[: -(-length // block_size)])
                slots.append(blocks[at // block_size] * block_size + at % block_size)
                self.chunks.append((start, count, length, torch.from_numpy(blocks).to(device)))
            start += count
        self.slots = torch.from_numpy(np.concatenate(slots)).to(device)
        self.rows: torch.Tensor | None = None
        if single_rows:
            self._plan_singles(single_rows, single_lens, single_tables, block_size, device)

    def _plan_singles(self, rows: list[int], lens: list[int], tables: list, block_size: int, device) -> None:
        width = max(len(table) for table in tables)
        padded = np.zeros((len(rows), width), dtype=np.int64)
        for i, table in enumerate(tables):
            padded[i, : len(table)] = table
        columns = np.arange(width * block_size)
        mask = columns[None, :] < np.asarray(lens)[:, None]
        self.rows = None if self.chunks == [] else torch.tensor(rows, device=device)
        self.num_single = len(rows)
        self.single_blocks = torch.from_numpy(padded.reshape(-1)).to(device)
        # One sequence alone may have no padding at all; a mask is still needed for the last block's tail.
        self.single_mask = None if mask.all() else torch.from_numpy(mask[:, None, None, :]).to(device)
        self.width = width

    @property
    def decode_only(self) -> bool:
        return not self.chunks

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, scale: float) -> torch.Tensor:
        """q [N, H, D], k and v [N, K, D] -> [N, H, D]. Stores k and v first."""
        store_kv(k, v, kv, self.slots)
        if not self.chunks:
            return self._attend_singles(q, kv, scale)
        out = torch.empty_like(q)
        for start, count, length, blocks in self.chunks:
            keys = kv[0].index_select(0, blocks).flatten(0, 1)[:length]
            values = kv[1].index_select(0, blocks).flatten(0, 1)[:length]
            out[start : start + count] = _causal(q[start : start + count], keys, values, scale)
        if self.rows is not None:
            out[self.rows] = self._attend_singles(q[self.rows], kv, scale)
        return out

    def _attend_singles(self, q: torch.Tensor, kv: torch.Tensor, scale: float) -> torch.Tensor:
        b, h, d = q.shape
        block_size, kh = kv.shape[2], kv.shape[3]
        keys, values = (
            part.index_select(0, self.single_blocks).view(b, self.width * block_size, kh, d).transpose(1, 2) for part in kv
        )
        # The G query heads of one KV head attend as if they were G query positions: no key is repeated.
        out = F.scaled_dot_product_attention(q.view(b, kh, h // kh, d), keys, values, attn_mask=self.single_mask, scale=scale)
        return out.reshape(b, h, d)


class PackedPlan:
    """Causal attention inside each of B equally padded sequences, with no cache: training and one-shot checks.

    Packed tokens are B x L; right padding needs no mask because causal rows never look right.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: None, scale: float) -> torch.Tensor:
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
