"""Attention over the paged KV cache in Triton: one kernel for prefill chunks and decodes, nothing gathered.

Work is cut into tiles of up to BLOCK_Q new tokens of one sequence. A tile's M = BLOCK_Q x G rows (queries of one KV
head) walk over the keys they may see, block by block through the table. Long decodes are cut along the keys as well
("splits") and joined by a second kernel.

N packed tokens · H query heads · K key/value heads · G = H / K · D head dim · T tiles · W blocks per table
"""

# ruff: noqa: ANN001, ANN202 - pointers and numbers of a kernel have no Python types
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from sensorium.kernels.reference import Attends

# Programs that keep a large GPU busy: about two per multiprocessor.
_PROGRAMS = 264
_PREFILL_ROWS = 128
_LOG2_E = 1.4426950408889634


@triton.jit
def _store_kernel(k, v, keys, values, slots, k_stride, v_stride, ROW: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    to = tl.load(slots + token).to(tl.int64) * ROW + at
    tl.store(keys + to, tl.load(k + token * k_stride + at, at < ROW), at < ROW)
    tl.store(values + to, tl.load(v + token * v_stride + at, at < ROW), at < ROW)


@triton.jit
def _attend_kernel(
    q, keys, values, out, lse, tiles, tables, q_stride, width, scale,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, count = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    start, seq = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query, group = m // G, m % G
    valid = (query < count)[:, None] & (d < D)[None, :]
    part = tl.cdiv(tl.cdiv(start + count, SPLITS), BLOCK_N) * BLOCK_N
    first = split * part
    last = tl.minimum(first + part, start + count)
    x = tl.load(q + (row + query)[:, None] * q_stride + ((head * G + group) * D)[:, None] + d, valid, 0.0)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n0 in range(first, last, BLOCK_N):
        n = n0 + tl.arange(0, BLOCK_N)
        block = tl.load(tables + seq * width + n // BLOCK_SIZE, n < last, 0).to(tl.int64)
        at = (block * BLOCK_SIZE + n % BLOCK_SIZE) * (K * D) + head * D
        seen = (n < last)[:, None] & (d < D)[None, :]
        key = tl.load(keys + at[:, None] + d, seen, 0.0)
        scores = tl.dot(x, tl.trans(key)) * scale
        scores = tl.where((n[None, :] <= (start + query)[:, None]) & (n < last)[None, :], scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weight = tl.exp2(scores - new_top[:, None])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(weight, 1)
        value = tl.load(values + at[:, None] + d, seen, 0.0)
        acc = acc * keep[:, None] + tl.dot(weight.to(value.dtype), value)
        top = new_top
    to = (row + query) * (K * G) + head * G + group
    result = acc / tl.maximum(total, 1e-30)[:, None]
    if SPLITS > 1:
        # Only decodes are split: the tile is one query. A split that has no key weighs nothing.
        to = (tile * (K * G) + head * G + group) * SPLITS + split
        tl.store(lse + to, tl.where(total > 0, top + tl.log2(tl.maximum(total, 1e-30)), -1e30), query < count)
    tl.store(out + to[:, None].to(tl.int64) * D + d, result, valid)


@triton.jit
def _join_kernel(parts, lse, tiles, out, H, D: tl.constexpr, BLOCK_D: tl.constexpr, SPLITS: tl.constexpr):
    part = tl.program_id(0) * H + tl.program_id(1)
    s, d = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    logs = tl.load(lse + part * SPLITS + s)
    weight = tl.exp2(logs - tl.max(logs, 0))
    rows = tl.load(parts + (part * SPLITS + s)[:, None] * D + d, (d < D)[None, :], 0.0)
    result = tl.sum(rows * weight[:, None], 0) / tl.sum(weight, 0)
    row = tl.load(tiles + tl.program_id(0) * 4)
    tl.store(out + (row * H + tl.program_id(1)) * D + d, result, d < D)


class TritonPagedPlan(Attends):
    """The same plan as the reference's PagedPlan, for one GPU. Decodes and chunks take one launch each."""

    def __init__(
        self,
        counts: Sequence[int],
        lens: Sequence[int],
        tables: Sequence[Sequence[int]],
        block_size: int,
        device: torch.device,
    ) -> None:
        count, length = np.asarray(counts), np.asarray(lens)
        self.block_size = block_size
        self.width = max(len(table) for table in tables)
        padded = np.zeros((len(tables), self.width), dtype=np.int32)
        for i, table in enumerate(tables):
            padded[i, : len(table)] = table
        seq = np.repeat(np.arange(len(count)), count)
        first = np.cumsum(count) - count
        position = np.arange(len(seq)) - first[seq] + (length - count)[seq]
        slots = padded[seq, position // block_size] * np.int64(block_size) + position % block_size
        self.counts, self.first, self.start = count, first, length - count
        self.tables = torch.from_numpy(padded).to(device)
        self.slots = torch.from_numpy(slots).to(device)
        single = np.flatnonzero(count == 1)
        self.singles = self._tiles(single, 1, device)
        self.chunked = np.flatnonzero(count > 1)
        self.chunks: dict[int, torch.Tensor] = {}

    @property
    def decode_only(self) -> bool:
        return len(self.chunked) == 0

    def _tiles(self, seqs: np.ndarray, rows: int, device: torch.device) -> torch.Tensor | None:
        """int32 [T, 4]: packed row, number of rows, position of the first, sequence. None for no sequence."""
        if not len(seqs):
            return None
        pieces = -(-self.counts[seqs] // rows)
        seq = np.repeat(seqs, pieces)
        offset = (np.arange(len(seq)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * rows
        count = np.minimum(rows, self.counts[seq] - offset)
        tiles = np.stack((self.first[seq] + offset, count, self.start[seq] + offset, seq), 1).astype(np.int32)
        return torch.from_numpy(tiles).to(device)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """q [N, H, D], k and v [N, K, D] -> [N, H, D]. Stores k and v first."""
        assert kv is not None
        n, h, d = q.shape
        heads = k.shape[1]
        group = h // heads
        keys, values = kv.unbind()
        row = heads * d
        _store_kernel[(n,)](
            k, v, keys, values, self.slots, k.stride(0), v.stride(0), ROW=row, BLOCK=triton.next_power_of_2(row)
        )
        out = torch.empty(n, h, d, dtype=q.dtype, device=q.device)
        if self.singles is not None:
            splits = triton.next_power_of_2(max(1, min(_PROGRAMS // (len(self.singles) * heads), 32)))
            self._launch(q, keys, values, out, self.singles, scale, max(16, triton.next_power_of_2(group)), splits)
        if len(self.chunked):
            block_q = max(_PREFILL_ROWS // group, 1)
            if block_q not in self.chunks:
                tiles = self._tiles(self.chunked, block_q, q.device)
                assert tiles is not None
                self.chunks[block_q] = tiles
            self._launch(q, keys, values, out, self.chunks[block_q], scale, _PREFILL_ROWS, 1)
        return out

    def _launch(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        tiles: torch.Tensor,
        scale: float,
        block_m: int,
        splits: int,
    ) -> None:
        (_, h, d), heads = q.shape, keys.shape[2]
        parts, lse = out, out
        if splits > 1:
            parts = torch.empty(len(tiles), h, splits, d, dtype=torch.float32, device=q.device)
            lse = torch.empty(len(tiles), h, splits, dtype=torch.float32, device=q.device)
        block_d = triton.next_power_of_2(d)
        _attend_kernel[(len(tiles), heads, splits)](
            q, keys, values, parts, lse, tiles, self.tables, q.stride(0), self.width, scale * _LOG2_E,
            K=heads, G=h // heads, D=d, BLOCK_D=block_d, BLOCK_SIZE=self.block_size,
            BLOCK_M=block_m, BLOCK_N=64, SPLITS=splits, num_warps=8 if block_m > 16 else 4,
        )  # fmt: skip
        if splits > 1:
            _join_kernel[(len(tiles), h)](parts, lse, tiles, out, h, D=d, BLOCK_D=block_d, SPLITS=splits)
