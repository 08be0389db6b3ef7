"""Decode attention in one kernel: normalise, rotate, store the new key and value, attend, join.

One new token per sequence. A program takes one KV head of one sequence and one part ("split") of its keys; the program
that holds the end of the sequence also makes the new key. The last program of a head to finish joins the parts, so
there is no second launch. Lengths and block tables are read on the device, which lets a CUDA graph serve any lengths.

B sequences · H query heads · K key/value heads · G = H / K · D head dim · W blocks per table · S splits
"""

# ruff: noqa: ANN001, ANN202 - pointers and numbers of a kernel have no Python types
from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sensorium.kernels.ahead import Kernel
from sensorium.kernels.reference import Attends, HeadNorms
from sensorium.kernels.triton_ops import TritonOps, dependent_launch

_PROGRAMS = 264
# The fewest keys that a part of a sequence is worth.
_PART = 128
_LOG2_E = 1.4426950408889634


@triton.jit
def _turned(x, at, weight, cos, sin, eps, D: tl.constexpr, NORM: tl.constexpr):
    """Heads x [R, D] read at offsets `at` [R], normalised and rotated; float32."""
    d = tl.arange(0, D)
    other = (d + D // 2) % D
    own = tl.load(x + at[:, None] + d[None, :]).to(tl.float32)
    pair = tl.load(x + at[:, None] + other[None, :]).to(tl.float32)
    if NORM:
        factor = tl.rsqrt(tl.sum(own * own, 1) / D + eps)[:, None]
        own *= factor * tl.load(weight + d).to(tl.float32)[None, :]
        pair *= factor * tl.load(weight + other).to(tl.float32)[None, :]
    return own * tl.load(cos + d).to(tl.float32)[None, :] + pair * tl.load(sin + d).to(tl.float32)[None, :]


@triton.jit
def _tile(keys, values, table, n, stop, head, K: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Keys and values [N, D] of one head at positions n [N], zero from `stop` on."""
    seen = n < stop
    block = tl.load(table + n // BLOCK_SIZE, seen, 0).to(tl.int64)
    at = ((block * BLOCK_SIZE + n % BLOCK_SIZE) * (K * D) + head * D)[:, None] + tl.arange(0, D)[None, :]
    return tl.load(keys + at, seen[:, None], 0.0), tl.load(values + at, seen[:, None], 0.0)


@triton.jit
def _take(q, key, value, seen, scale, top, total, acc):
    """One tile of online softmax."""
    scores = tl.where(seen[None, :], tl.dot(q, tl.trans(key)) * scale, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weight = tl.exp2(scores - new_top[:, None])
    keep = tl.exp2(top - new_top)
    acc = acc * keep[:, None] + tl.dot(weight.to(value.dtype), value)
    return new_top, total * keep + tl.sum(weight, 1), acc


@Kernel
@triton.jit
def _decode_kernel(
    qkv, cos, sin, q_norm, k_norm, keys, values, lens, tables, width_at, out, parts, logs, arrivals, scale, eps,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, PART: tl.constexpr, AHEAD: tl.constexpr,
    NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    seq, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    # What earlier steps left behind may be read before the predecessor has ended: lengths, tables, old keys and values.
    length, width = tl.load(lens + seq), tl.load(width_at)
    part = tl.maximum(tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_N) * BLOCK_N, PART)
    first = split * part
    if first >= length:
        return
    old = tl.minimum(first + part, length - 1)
    d, m, n = tl.arange(0, D), tl.arange(0, BLOCK_M), first + tl.arange(0, BLOCK_N)
    table = tables + seq * width
    if AHEAD:
        key, value = _tile(keys, values, table, n, old, head, K, D, BLOCK_SIZE)
    end = tl.load(table + (length - 1) // BLOCK_SIZE).to(tl.int64) * BLOCK_SIZE + (length - 1) % BLOCK_SIZE
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = qkv + seq.to(tl.int64) * ((K * G + 2 * K) * D)
    cos += seq * D
    sin += seq * D
    q = _turned(row, (head * G + tl.minimum(m, G - 1)) * D, q_norm, cos, sin, eps, D, NORM).to(values.dtype.element_ty)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    if first + part >= length:
        new = _turned(row, (K * G + head + tl.arange(0, 1)) * D, k_norm, cos, sin, eps, D, NORM).to(
            values.dtype.element_ty
        )
        new_value = tl.load(row + (K * G + K + head) * D + d)
        to = end * (K * D) + head * D + d
        tl.store(keys + to[None, :], new)
        tl.store(values + to, new_value)
        top = tl.sum(q.to(tl.float32) * new.to(tl.float32), 1) * scale
        total += 1.0
        acc += new_value.to(tl.float32)[None, :]
    if AHEAD:
        for _ in range(first, old, BLOCK_N):
            later = _tile(keys, values, table, n + BLOCK_N, old, head, K, D, BLOCK_SIZE)
            top, total, acc = _take(q, key, value, n < old, scale, top, total, acc)
            key, value = later
            n += BLOCK_N
    else:
        for n0 in tl.range(first, old, BLOCK_N, num_stages=3):
            n = n0 + tl.arange(0, BLOCK_N)
            key, value = _tile(keys, values, table, n, old, head, K, D, BLOCK_SIZE)
            top, total, acc = _take(q, key, value, n < old, scale, top, total, acc)
    to = (seq * (K * G) + head * G + m).to(tl.int64)
    real = m < G
    if SPLITS == 1:
        tl.store(out + to[:, None] * D + d, acc / total[:, None], real[:, None])
    else:
        used = tl.cdiv(length, part)
        if used == 1:
            tl.store(out + to[:, None] * D + d, acc / total[:, None], real[:, None])
        else:
            tl.store(parts + (to * SPLITS + split)[:, None] * D + d, acc / total[:, None], real[:, None])
            tl.store(logs + to * SPLITS + split, top + tl.log2(total), real)
            tl.debug_barrier()
            if tl.atomic_add(arrivals + seq * K + head, 1, sem="acq_rel", scope="gpu") == used - 1:
                _join(out, parts, logs, to, real, used, G, D, BLOCK_M, SPLITS)
                tl.store(arrivals + seq * K + head, 0)


@triton.jit
def _join(
    out, parts, logs, to, real, used, G: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr
):
    """Weigh the parts by their sums. They were written by other multiprocessors: read past the first-level cache."""
    d, s = tl.arange(0, D), tl.arange(0, SPLITS)
    there = real[:, None] & (s < used)[None, :]
    log = tl.load(logs + to[:, None] * SPLITS + s[None, :], there, -1e30, cache_modifier=".cg")
    top = tl.max(log, 1)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    for split in range(used):
        weight = tl.exp2(tl.load(logs + to * SPLITS + split, real, -1e30, cache_modifier=".cg") - top)
        rows = tl.load(parts + (to * SPLITS + split)[:, None] * D + d, real[:, None], 0.0, cache_modifier=".cg")
        acc += weight[:, None] * rows
        total += weight
    tl.store(out + to[:, None] * D + d, acc / total[:, None], real[:, None])


class DecodePlan(Attends):
    """One new token per row, with everything that changes from step to step on the device.

    lens int32 [B] counts the new token, 0 for rows of padding, whose results mean nothing. width int32 [1] is W of
    tables int32 [B, W]. `scratch` is shared by plans that never run at once.
    """

    ops = TritonOps

    def __init__(
        self, lens: torch.Tensor, tables: torch.Tensor, width: torch.Tensor, block_size: int, scratch: Scratch
    ) -> None:
        self.lens, self.tables, self.width, self.block_size = lens, tables, width, block_size
        self.scratch = scratch

    def attend_qkv(
        self,
        qkv: torch.Tensor,
        heads: tuple[int, int],
        norms: HeadNorms | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        kv: torch.Tensor | None,
        scale: float,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As Attends.attend_qkv, for a power-of-two head dim and contiguous qkv.

        out [at least B, H D] gets the rows whose lengths are above 0; the others of it stay as they are.
        """
        assert kv is not None
        h, k_heads = heads
        batch, d = len(qkv), kv.shape[-1]
        splits = triton.next_power_of_2(max(1, min(_PROGRAMS // (batch * k_heads), 32)))
        parts, logs, arrivals = self.scratch.take(batch, h, k_heads, splits, d)
        if out is None:
            out = torch.empty(batch, h * d, dtype=qkv.dtype, device=qkv.device)
        keys, values = kv.unbind()
        q_norm, k_norm, eps = norms if norms is not None else (qkv, qkv, 0.0)
        # Measured on an H200: with programs to spare one warp each keeps most loads in flight.
        keys_per_tile, warps = (32, 1) if batch * k_heads >= 1024 else (64, 4)
        pdl = dependent_launch(qkv.device)
        _decode_kernel[(batch, k_heads, splits)](
            qkv, cos, sin, q_norm, k_norm, keys, values, self.lens, self.tables, self.width, out, parts, logs,
            arrivals, scale * _LOG2_E, eps,
            K=k_heads, G=h // k_heads, D=d, BLOCK_SIZE=self.block_size,
            BLOCK_M=max(16, triton.next_power_of_2(h // k_heads)), BLOCK_N=keys_per_tile, SPLITS=splits, PART=_PART,
            AHEAD=splits > 1, NORM=norms is not None, PDL=pdl, num_warps=warps, launch_pdl=pdl,
        )  # fmt: skip
        return out


class Scratch:
    """Memory for the parts of split decodes, kept between steps so that graphs may hold on to it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts = self._logs = torch.empty(0, device=device)
        self._arrivals = torch.zeros(0, dtype=torch.int32, device=device)
        self._kept: list[torch.Tensor] = []

    def take(
        self, batch: int, heads: int, k_heads: int, splits: int, d: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """parts [B, H, S, D] and logs [B, H, S] float32 with any content, arrivals [B, K] int32 of zeros."""
        rows = batch * heads * splits
        if self._logs.numel() < rows or self._parts.numel() < rows * d:
            self._kept += [self._parts, self._logs]  # a captured graph may still write there
            self._parts = torch.empty(rows * d, device=self._device)
            self._logs = torch.empty(rows, device=self._device)
        if self._arrivals.numel() < batch * k_heads:
            self._kept.append(self._arrivals)
            self._arrivals = torch.zeros(batch * k_heads, dtype=torch.int32, device=self._device)
        return self._parts, self._logs, self._arrivals
