"""kernels.encoder in Triton.

A head dim that is no power of two is cut into its largest power of two and a rest: SigLIP's 72 is 64 and 16, 8 of them
zero, where padding to 128 would nearly double the arithmetic.

N packed positions · H heads · D head dim · S segments · W width
"""

# ruff: noqa: ANN001, ANN202 - pointers and numbers of a kernel have no Python types
from __future__ import annotations

import torch
import triton
import triton.language as tl

from sensorium.kernels.ahead import Kernel
from sensorium.kernels.encoder import EncoderOps, LayerNorm, Segments

_LOG2_E = 1.4426950408889634


@triton.jit
def _part(x, rows, d, seen, D: tl.constexpr, WHOLE: tl.constexpr):
    """x [rows, d]; WHOLE: all of it is there."""
    at = x + rows[:, None] + d[None, :]
    return tl.load(at) if WHOLE else tl.load(at, seen[:, None] & (d < D)[None, :], 0.0)


@triton.jit
def _take(
    x, x_rest, k, v, rows, d, r, seen, allowed, top, total, acc, acc_rest,
    D: tl.constexpr, REST: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys of an online softmax."""
    WHOLE: tl.constexpr = not MASKED and d.shape[0] <= D
    scores = tl.dot(x, tl.trans(_part(k, rows, d, seen, D, WHOLE)))
    if REST:
        scores = tl.dot(x_rest, tl.trans(_part(k, rows, r, seen, D, False)), scores)
    if MASKED:
        scores = tl.where(allowed, scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weight = tl.exp2(scores - new_top[:, None])
    keep = tl.exp2(top - new_top)
    total = total * keep + tl.sum(weight, 1)
    weight = weight.to(x.dtype)
    acc = tl.dot(weight, _part(v, rows, d, seen, D, WHOLE), acc * keep[:, None])
    if REST:
        acc_rest = tl.dot(weight, _part(v, rows, r, seen, D, False), acc_rest * keep[:, None])
    return new_top, total, acc, acc_rest


@Kernel
@triton.jit
def _segment_kernel(
    q, k, v, out, bounds, stride, scale, chunk,
    H: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, REST_BLOCK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head and segment over the keys that it may see."""
    head, segment = tl.program_id(1), tl.program_id(2)
    start, stop = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    first = start + tl.program_id(0) * BLOCK_M
    if first >= stop:
        return
    m, n, d, r = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, MAIN), MAIN + tl.arange(0, REST_BLOCK)
    held = first + m < stop
    rows = (first + m).to(tl.int64) * stride + head * D
    x = (_part(q, rows, d, held, D, False).to(tl.float32) * scale).to(q.dtype.element_ty)
    x_rest = (_part(q, rows, r, held, D, False).to(tl.float32) * scale).to(q.dtype.element_ty)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, MAIN], tl.float32)
    acc_rest = tl.zeros([BLOCK_M, REST_BLOCK], tl.float32)
    k += head * D
    v += head * D
    ends = tl.minimum(start + ((first - start + m) // chunk + 1) * chunk, stop)
    seen_by_all = tl.minimum(start + ((first - start) // chunk + 1) * chunk, stop)
    last = tl.minimum(start + ((first - start + BLOCK_M - 1) // chunk + 1) * chunk, stop)
    free = start + (seen_by_all - start) // BLOCK_N * BLOCK_N
    for n0 in tl.range(start, free, BLOCK_N, num_stages=STAGES):
        rows = (n0 + n).to(tl.int64) * stride
        seen = n0 + n < stop
        top, total, acc, acc_rest = _take(
            x, x_rest, k, v, rows, d, r, seen, seen[None, :], top, total, acc, acc_rest, D, REST, False
        )
    for n0 in tl.range(free, last, BLOCK_N, num_stages=1):
        rows = (n0 + n).to(tl.int64) * stride
        seen, allowed = n0 + n < last, (n0 + n)[None, :] < ends[:, None]
        top, total, acc, acc_rest = _take(
            x, x_rest, k, v, rows, d, r, seen, allowed, top, total, acc, acc_rest, D, REST, True
        )
    to = out + ((first + m).to(tl.int64) * (H * D) + head * D)[:, None]
    tl.store(to + d[None, :], acc / total[:, None], held[:, None] & (d < D)[None, :])
    if REST:
        tl.store(to + r[None, :], acc_rest / total[:, None], held[:, None] & (r < D)[None, :])


@Kernel
@triton.jit
def _add_norm_kernel(
    x, y, weight, bias, out, M, eps, W: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr
):
    w = tl.arange(0, BLOCK)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    held = (m < M)[:, None] & (w < W)[None, :]
    at = m[:, None].to(tl.int64) * W + w[None, :]
    row = tl.load(x + at, held, 0.0).to(tl.float32)
    if ADD:
        # Rounded as the sum that is kept, so that what is normalised is what the next layer reads.
        row = (row + tl.load(y + at, held, 0.0).to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + at, row, held)
        row = row.to(tl.float32)
    centred = tl.where(held, row - (tl.sum(row, 1) / W)[:, None], 0.0)
    factor = tl.rsqrt(tl.sum(centred * centred, 1) / W + eps)
    scale, shift = tl.load(weight + w, w < W, 0.0).to(tl.float32), tl.load(bias + w, w < W, 0.0).to(tl.float32)
    tl.store(out + at, centred * factor[:, None] * scale[None, :] + shift[None, :], held)


class TritonEncoderOps(EncoderOps):
    chunks = True

    @staticmethod
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments) -> torch.Tensor:
        n, heads, dim = q.shape
        if q.stride(1) != dim or not q.stride() == k.stride() == v.stride():
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        main = max(1 << (dim.bit_length() - 1), 16)
        rest = max(dim - main, 0)
        out = torch.empty(n, heads, dim, dtype=q.dtype, device=q.device)
        # Tiles measured on an H200, for heads of 64 and 72.
        _segment_kernel[(triton.cdiv(segments.longest, 64), heads, len(segments.bounds) - 1)](
            q, k, v, out, segments.bounds, q.stride(0), dim**-0.5 * _LOG2_E, segments.chunk or segments.longest,
            H=heads, D=dim, MAIN=main, REST=rest > 0, REST_BLOCK=max(triton.next_power_of_2(rest), 16),
            BLOCK_M=64, BLOCK_N=64, STAGES=3, num_warps=4,
        )  # fmt: skip
        return out

    @staticmethod
    def add_norm(x: torch.Tensor, y: torch.Tensor | None, norm: LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
        if not x.is_contiguous() or (y is not None and not y.is_contiguous()):
            return EncoderOps.add_norm(x, y, norm)
        width = x.shape[-1]
        count = x.numel() // width
        out = torch.empty_like(x)
        rows = 1 if count < 2048 else 2
        _add_norm_kernel[(triton.cdiv(count, rows),)](
            x, x if y is None else y, norm.weight, norm.bias, out, count, norm.eps,
            W=width, BLOCK=triton.next_power_of_2(width), ROWS=rows, ADD=y is not None, num_warps=4,
        )  # fmt: skip
        return x, out
