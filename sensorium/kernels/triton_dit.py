"""kernels.dit as Triton kernels: each reads its input once and computes in float32."""

# ruff: noqa: ANN001, ANN202 - pointers and numbers of a kernel have no Python types
from __future__ import annotations

import torch
import triton
import triton.language as tl

from sensorium.kernels.ahead import Kernel
from sensorium.kernels.dit import TAPS, DitOps, Pair

_ROWS = 4
"""Rows of a program."""
_EPS, _MODULATE_EPS = 1e-5, 1e-6


@triton.jit
def _normalised(v, held, C, eps):
    """Rows of v [BR, BC], zeros where they are not held, to mean 0 and variance 1."""
    mean = tl.sum(v, 1) / C
    v = tl.where(held, v - mean[:, None], 0.0)
    return v * tl.rsqrt(tl.sum(v * v, 1) / C + eps)[:, None]


@Kernel
@triton.jit
def _modulate_kernel(
    x, y, gate, shift, scale, total, out, M, C, eps, ADD: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """out [M, C] = x modulated; ADD: of total = x + gate y, which is kept."""
    row, c = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BC)
    held = (row[:, None] < M) & (c[None, :] < C)
    at = row[:, None].to(tl.int64) * C + c[None, :]
    v = tl.load(x + at, held, 0.0).to(tl.float32)
    if ADD:
        weight = tl.load(gate + c, c < C, 0.0).to(tl.float32)[None, :]
        v += weight * tl.load(y + at, held, 0.0).to(tl.float32)
        tl.store(total + at, v, held)
    times = 1.0 + tl.load(scale + c, c < C, 0.0).to(tl.float32)[None, :]
    plus = tl.load(shift + c, c < C, 0.0).to(tl.float32)[None, :]
    tl.store(out + at, _normalised(v, held, C, eps) * times + plus, held)


@Kernel
@triton.jit
def _split_kernel(
    qkv, q_weight, q_bias, k_weight, k_bias, q, kv, M, H, D, eps, BH: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """One row of qkv [M, 3, H, D] to q [M, H, D] and kv [2, M, H, D]."""
    row = tl.program_id(0).to(tl.int64)
    h, d = tl.arange(0, BH), tl.arange(0, BD)
    held = (h[:, None] < H) & (d[None, :] < D)
    own = h[:, None] * D + d[None, :]
    width = H * D
    for part in tl.static_range(3):
        v = tl.load(qkv + (row * 3 + part) * width + own, held, 0.0).to(tl.float32)
        if part < 2:
            weight = tl.load((q_weight if part == 0 else k_weight) + d, d < D, 0.0).to(tl.float32)
            bias = tl.load((q_bias if part == 0 else k_bias) + d, d < D, 0.0).to(tl.float32)
            v = _normalised(v, held, D, eps) * weight[None, :] + bias[None, :]
        if part == 0:
            tl.store(q + row * width + own, v, held)
        else:
            tl.store(kv + ((part - 1) * M.to(tl.int64) + row) * width + own, v, held)


@Kernel
@triton.jit
def _taps_kernel(
    x, before, ends, after, y, T, R, C, before_stride, after_stride, ENDS: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """Frame t of row r of stream b: y [B, T, R, 3, C]."""
    r, t, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = tl.arange(0, BC)
    held = c < C
    end = T
    if ENDS:
        end = tl.load(ends + b).to(tl.int32)
    for tap in tl.static_range(3):
        place = t + tap - 2
        old = tl.load(before + b * before_stride + ((place + 2) * R + r) * C + c, held & (place < 0), 0.0)
        new = tl.load(x + ((b * T + place) * R + r) * C + c, held & (place >= 0), 0.0)
        v = tl.where(place < 0, old, new)
        tl.store(y + (((b * T + t) * R + r) * 3 + tap) * C + c, v, held)
        # Every frame is the last tap of one program; those before x are other taps of the first.
        left = place + 2 - end
        mine = (left >= 0) & (left < 2)
        if tap < 2:
            mine = mine & (t == 0)
        tl.store(after + b * after_stride + (left * R + r) * C + c, v, held & mine)


@Kernel
@triton.jit
def _norm_mish_kernel(x, weight, bias, out, M, C, eps, BR: tl.constexpr, BC: tl.constexpr):
    row, c = tl.program_id(0) * BR + tl.arange(0, BR), tl.arange(0, BC)
    held = (row[:, None] < M) & (c[None, :] < C)
    at = row[:, None].to(tl.int64) * C + c[None, :]
    v = _normalised(tl.load(x + at, held, 0.0).to(tl.float32), held, C, eps)
    v = v * tl.load(weight + c, c < C, 0.0).to(tl.float32)[None, :]
    v += tl.load(bias + c, c < C, 0.0).to(tl.float32)[None, :]
    # tanh(log(1 + e^v)), where e^v does not overflow; above it is 1.
    e = tl.exp(tl.minimum(v, 20.0))
    n = e * (e + 2.0)
    tl.store(out + at, v * n / (n + 2.0), held)


class TritonDitOps(DitOps):
    @staticmethod
    def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        if shift.dim() > 1:  # one for each stream
            return DitOps.modulate(x, shift, scale)
        return _modulated(x, None, shift, shift, scale)[1]

    @staticmethod
    def add_modulate(
        x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor
    ) -> Pair:
        if shift.dim() > 1:
            return DitOps.add_modulate(x, y, gate, shift, scale)
        return _modulated(x, y, gate, shift, scale)

    @staticmethod
    def split(qkv: torch.Tensor, heads: int, q_norm: Pair, k_norm: Pair) -> Pair:
        b, n, rows, width = qkv.shape
        dim = width // (3 * heads)
        q = qkv.new_empty(b, n, rows, heads, dim)
        kv = qkv.new_empty(2, b, n, rows * heads * dim)
        shape = {"BH": triton.next_power_of_2(heads), "BD": triton.next_power_of_2(dim)}
        m = b * n * rows
        _split_kernel[m,](qkv.contiguous(), *q_norm, *k_norm, q, kv, m, heads, dim, _EPS, **shape, num_warps=4)
        return q, kv

    @staticmethod
    def taps(x: torch.Tensor, before: torch.Tensor, ends: torch.Tensor | None, after: torch.Tensor) -> torch.Tensor:
        b, n, rows, c = x.shape
        assert before[0].is_contiguous()
        assert after[0].is_contiguous()
        y = x.new_empty(b, n, rows, TAPS * c)
        strides = before.stride(0), after.stride(0)
        given = (x.contiguous(), before, x if ends is None else ends, after, y)
        _taps_kernel[rows, n, b](
            *given, n, rows, c, *strides, ENDS=ends is not None, BC=triton.next_power_of_2(c), num_warps=2
        )
        return y

    @staticmethod
    def norm_mish(x: torch.Tensor, norm: Pair) -> torch.Tensor:
        x, c = x.contiguous(), x.shape[-1]
        m, out = x.numel() // c, torch.empty_like(x)
        grid = (triton.cdiv(m, _ROWS),)
        _norm_mish_kernel[grid](x, *norm, out, m, c, _EPS, BR=_ROWS, BC=triton.next_power_of_2(c), num_warps=4)
        return out


def _modulated(
    x: torch.Tensor, y: torch.Tensor | None, gate: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor
) -> Pair:
    x, c = x.contiguous(), x.shape[-1]
    m, out = x.numel() // c, torch.empty_like(x)
    total = out if y is None else torch.empty_like(x)
    other = x if y is None else y.contiguous()
    grid, width = (triton.cdiv(m, _ROWS),), triton.next_power_of_2(c)
    given = (x, other, gate, shift, scale, total, out, m, c, _MODULATE_EPS)
    _modulate_kernel[grid](*given, ADD=y is not None, BR=_ROWS, BC=width, num_warps=4)
    return total, out
