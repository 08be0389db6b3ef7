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
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sensorium.kernels.ahead import Kernel
from sensorium.kernels.reference import Attends, HeadNorms
from sensorium.kernels.triton_decode import DecodePlan, Scratch
from sensorium.kernels.triton_ops import TritonOps, dependent_launch
from sensorium.kernels.upload import upload, upload_all

# Programs that keep a large GPU busy: about two per multiprocessor.
_PROGRAMS = 264
_PREFILL_ROWS = 128
_LOG2_E = 1.4426950408889634


@Kernel
@triton.jit
def _store_kernel(k, v, keys, values, slots, k_stride, v_stride, ROW: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    to = tl.load(slots + token).to(tl.int64) * ROW + at
    tl.store(keys + to, tl.load(k + token * k_stride + at, at < ROW), at < ROW)
    tl.store(values + to, tl.load(v + token * v_stride + at, at < ROW), at < ROW)


@Kernel
@triton.jit
def _prepare_kernel(
    qkv, cos, sin, q_norm, k_norm, qk, keys, values, slots, eps,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token: q and k, normalised and rotated, to qk [N, H + K, D]; k and v to the cache unless its slot is -1."""
    r, d = tl.arange(0, ROWS), tl.arange(0, D)
    other = (d + D // 2) % D
    valid = (r < H + K)[:, None]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    token = tl.program_id(0).to(tl.int64)
    at = qkv + token * ((H + 2 * K) * D) + r[:, None] * D
    own = tl.load(at + d[None, :], valid, 0.0).to(tl.float32)
    pair = tl.load(at + other[None, :], valid, 0.0).to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(own * own, 1) / D + eps)[:, None]
        is_q = (r < H)[:, None]
        own *= factor * tl.where(is_q, tl.load(q_norm + d)[None, :], tl.load(k_norm + d)[None, :]).to(tl.float32)
        pair *= factor * tl.where(is_q, tl.load(q_norm + other)[None, :], tl.load(k_norm + other)[None, :]).to(
            tl.float32
        )
    turned = own * tl.load(cos + token * D + d).to(tl.float32)[None, :]
    turned += pair * tl.load(sin + token * D + d).to(tl.float32)[None, :]
    tl.store(qk + token * ((H + K) * D) + r[:, None] * D + d[None, :], turned, valid)
    slot = tl.load(slots + token).to(tl.int64)
    to = slot * (K * D)
    tl.store(keys + to + (r - H)[:, None] * D + d[None, :], turned, valid & (r >= H)[:, None] & (slot >= 0))
    is_v = (r < K)[:, None] & (slot >= 0)
    value = tl.load(at + (H + K) * D + d[None, :], is_v, 0.0)
    tl.store(values + to + r[:, None] * D + d[None, :], value, is_v)


@Kernel
@triton.jit(do_not_specialize=("width",))
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


@Kernel
@triton.jit
def _chunk_kernel(
    q, k, v, keys, values, out, tiles, tables, width_at, q_stride, k_stride, v_stride, scale,
    H: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, STAGES: tl.constexpr, PAGED: tl.constexpr,
):  # fmt: skip
    """Causal attention of one tile of new tokens; its keys lie in the cache or, at a sequence's start, beside q.

    Heads of one group run together for the sake of the second-level cache, tiles with most keys first.
    """
    head, tile = tl.program_id(0), tl.num_programs(1) - 1 - tl.program_id(1)
    row, count = tl.load(tiles + tile * 4), tl.load(tiles + tile * 4 + 1)
    start, seq = tl.load(tiles + tile * 4 + 2), tl.load(tiles + tile * 4 + 3)
    if count == 0:
        return
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, D)
    held = (m < count)[:, None]
    x = tl.load(q + (row + m)[:, None].to(tl.int64) * q_stride + head * D + d, held, 0.0)
    x = (x.to(tl.float32) * scale).to(x.dtype)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    table, stop = tables + seq * tl.load(width_at), start + count
    k += (row - start).to(tl.int64) * k_stride
    v += (row - start).to(tl.int64) * v_stride
    free = (start + 1) // BLOCK_N * BLOCK_N
    for n0 in tl.range(0, free, BLOCK_N, num_stages=STAGES):
        n = n0 + tl.arange(0, BLOCK_N)
        key, value = _keys_of(
            k, v, keys, values, table, n, stop, head // (H // K), k_stride, v_stride, K, D, BLOCK_SIZE, PAGED, False
        )
        scores = tl.dot(x, tl.trans(key))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weight = tl.exp2(scores - new_top[:, None])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(weight, 1)
        acc = tl.dot(weight.to(value.dtype), value, acc * keep[:, None])
        top = new_top
    for n0 in tl.range(free, stop, BLOCK_N, num_stages=STAGES):
        n = n0 + tl.arange(0, BLOCK_N)
        key, value = _keys_of(
            k, v, keys, values, table, n, stop, head // (H // K), k_stride, v_stride, K, D, BLOCK_SIZE, PAGED, True
        )
        scores = tl.where(n[None, :] <= (start + m)[:, None], tl.dot(x, tl.trans(key)), -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        weight = tl.exp2(scores - new_top[:, None])
        keep = tl.exp2(top - new_top)
        total = total * keep + tl.sum(weight, 1)
        acc = tl.dot(weight.to(value.dtype), value, acc * keep[:, None])
        top = new_top
    tl.store(out + (row + m)[:, None].to(tl.int64) * (H * D) + head * D + d, acc / total[:, None], held)


@triton.jit
def _keys_of(
    k, v, keys, values, table, n, stop, head, k_stride, v_stride,
    K: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr, PAGED: tl.constexpr, ENDS: tl.constexpr,
):  # fmt: skip
    """Keys and values [N, D] at positions n of one sequence. ENDS: some may lie past its end; those are zero."""
    d, seen = tl.arange(0, D)[None, :], n < stop
    if PAGED:
        block = tl.load(table + n // BLOCK_SIZE, seen, 0).to(tl.int64)
        at = ((block * BLOCK_SIZE + n % BLOCK_SIZE) * (K * D) + head * D)[:, None] + d
        from_k, from_v = keys + at, values + at
    else:
        from_k = k + n[:, None].to(tl.int64) * k_stride + head * D + d
        from_v = v + n[:, None].to(tl.int64) * v_stride + head * D + d
    if ENDS:
        return tl.load(from_k, seen[:, None], 0.0), tl.load(from_v, seen[:, None], 0.0)
    return tl.load(from_k), tl.load(from_v)


@Kernel
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


def prepare(
    qkv: torch.Tensor,
    heads: tuple[int, int],
    norms: HeadNorms | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q [N, H, D], k and v [N, K, D] from contiguous qkv [N, (H + 2 K) D]; k and v go to the cache as well."""
    (h, k_heads), n, d = heads, len(qkv), keys.shape[-1]
    qk = torch.empty(n, h + k_heads, d, dtype=qkv.dtype, device=qkv.device)
    q_norm, k_norm, eps = norms if norms is not None else (qkv, qkv, 0.0)
    pdl = dependent_launch(qkv.device)
    _prepare_kernel[(n,)](
        qkv, cos, sin, q_norm, k_norm, qk, keys, values, slots, eps, H=h, K=k_heads, D=d,
        ROWS=triton.next_power_of_2(h + k_heads), NORM=norms is not None, PDL=pdl, num_warps=8, launch_pdl=pdl,
    )  # fmt: skip
    q, k = qk.split((h, k_heads), dim=1)
    return q, k, qkv.view(n, -1, d)[:, h + k_heads :]


def attend_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tiles: torch.Tensor,
    tables: torch.Tensor,
    width: torch.Tensor,
    scale: float,
    rows: int,
    paged: bool,
) -> torch.Tensor:
    """Attention of tiles of up to `rows` new tokens -> [N, H, D]; rows outside of tiles keep any value.

    paged: keys come from the cache; otherwise from k and v, for sequences that begin in this step. D is a power of two.
    """
    (_, h, d), heads = q.shape, k.shape[1]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    _chunk_kernel[(h, len(tiles))](
        q, k, v, keys, values, out, tiles, tables, width, q.stride(0), k.stride(0), v.stride(0), scale * _LOG2_E,
        H=h, K=heads, D=d, BLOCK_SIZE=keys.shape[1], BLOCK_M=rows, BLOCK_N=rows, STAGES=3, PAGED=paged,
        num_warps=rows // 16,
    )  # fmt: skip
    return out


class ChunkPlan(Attends):
    """Prefill with everything that changes from step to step on the device, so that a CUDA graph can hold it.

    slots int32 [N], -1 for padding; tiles int32 [T, 4] as TritonPagedPlan makes them, with a count of 0 for padding and
    of at most ROWS; width int32 [1] is W of tables int32 [B, W].

    `decodes`, where it is set, computes the first rows of the step, as far as its lengths are above 0: they have slot
    -1, no tile, and the first tables.
    """

    ops = TritonOps
    ROWS = 64

    def __init__(self, slots: torch.Tensor, tiles: torch.Tensor, tables: torch.Tensor, width: torch.Tensor) -> None:
        self.slots, self.tiles, self.tables, self.width = slots, tiles, tables, width
        self.decodes: DecodePlan | None = None

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
        """As Attends.attend_qkv, for a power-of-two head dim and contiguous qkv."""
        assert kv is not None
        keys, values = kv.unbind()
        q, k, v = prepare(qkv, heads, norms, cos, sin, keys, values, self.slots)
        out = attend_chunks(
            q, k, v, keys, values, self.tiles, self.tables, self.width, scale, self.ROWS, paged=True
        ).view(len(qkv), -1)
        if self.decodes is not None:
            count = len(self.decodes.lens)
            self.decodes.attend_qkv(qkv[:count], heads, norms, cos, sin, kv, scale, out)
        return out


class TritonPagedPlan(Attends):
    """The same plan as the reference's PagedPlan, for one GPU. Decodes and chunks take one launch each."""

    ops = TritonOps
    decode_plan, chunk_plan, scratch = DecodePlan, ChunkPlan, Scratch

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
        single = np.flatnonzero(count == 1)
        self.chunked = np.flatnonzero(count > 1)
        self.fresh = bool(len(self.chunked)) and not self.start[self.chunked].any()
        # Tile sizes measured on an H200: keys that lie beside q come fast enough for small ones.
        self.rows = 64 if self.fresh else 128
        tiles = [self._tiles(single, 1), self._tiles(self.chunked, self.rows)]
        width = np.array([self.width], np.int32)
        self.tables, self.slots, self.width_at, singles, chunks = upload_all([padded, slots, width, *tiles], device)
        self.singles = singles if len(singles) else None
        self.chunks = {self.rows: chunks}

    @property
    def decode_only(self) -> bool:
        return len(self.chunked) == 0

    def _tiles(self, seqs: np.ndarray, rows: int) -> np.ndarray:
        """int32 [T, 4]: packed row, number of rows, position of the first, sequence."""
        pieces = -(-self.counts[seqs] // rows)
        seq = np.repeat(seqs, pieces)
        offset = (np.arange(len(seq)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) * rows
        count = np.minimum(rows, self.counts[seq] - offset)
        return np.stack((self.first[seq] + offset, count, self.start[seq] + offset, seq), 1).astype(np.int32)

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
        """As Attends.attend_qkv, for contiguous qkv."""
        assert kv is not None
        n, d = len(qkv), kv.shape[-1]
        if d & (d - 1):
            return super().attend_qkv(qkv, heads, norms, cos, sin, kv, scale)
        keys, values = kv.unbind()
        q, k, v = prepare(qkv, heads, norms, cos, sin, keys, values, self.slots)
        return self._attend(q, k, v, keys, values, scale).view(n, -1)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        """q [N, H, D], k and v [N, K, D] -> [N, H, D]. Stores k and v first."""
        assert kv is not None
        n, heads, d = k.shape
        keys, values = kv.unbind()
        row = heads * d
        _store_kernel[(n,)](
            k, v, keys, values, self.slots, k.stride(0), v.stride(0), ROW=row, BLOCK=triton.next_power_of_2(row)
        )
        return self._attend(q, k, v, keys, values, scale)

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Attention after k and v were stored."""
        n, h, d = q.shape
        group = h // k.shape[1]
        if len(self.chunked) == 0:
            out = torch.empty(n, h, d, dtype=q.dtype, device=q.device)
        elif d & (d - 1):
            out = torch.empty(n, h, d, dtype=q.dtype, device=q.device)
            tiles = self._chunk_tiles(max(_PREFILL_ROWS // group, 1), q.device)
            self._launch(q, keys, values, out, tiles, scale, _PREFILL_ROWS, 1)
        else:
            tiles, paged = self.chunks[self.rows], not self.fresh
            out = attend_chunks(q, k, v, keys, values, tiles, self.tables, self.width_at, scale, self.rows, paged)
        if self.singles is not None:
            splits = triton.next_power_of_2(max(1, min(_PROGRAMS // (len(self.singles) * k.shape[1]), 32)))
            self._launch(q, keys, values, out, self.singles, scale, max(16, triton.next_power_of_2(group)), splits)
        return out

    def _chunk_tiles(self, rows: int, device: torch.device) -> torch.Tensor:
        if rows not in self.chunks:
            self.chunks[rows] = upload(self._tiles(self.chunked, rows), device)
        return self.chunks[rows]

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
