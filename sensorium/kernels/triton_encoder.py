"""kernels.encoder in Triton.

N packed positions · H heads · D head dim · S segments or slices · W width · L patches · R queries of all heads
"""

# ruff: noqa: ANN001, ANN202 - pointers and numbers of a kernel have no Python types
from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from sensorium.kernels.ahead import Kernel
from sensorium.kernels.encoder import EncoderOps, LayerNorm, Segments

_LOG2_E = 1.4426950408889634


@triton.jit
def _rows(at, there, D: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, ALL: tl.constexpr):
    """The first MAIN columns of rows of D, and the REST columns behind, zero from D on. ALL: all rows are there."""
    d = tl.arange(0, MAIN)[None, :]
    if ALL and D >= MAIN:
        main = tl.load(at + d)
    else:
        main = tl.load(at + d, there & (d < D), 0.0)
    rest = main
    if REST:
        r = MAIN + tl.arange(0, REST)[None, :]
        rest = tl.load(at + r, there & (r < D), 0.0)
    return main, rest


@triton.jit
def _take(x, x_rest, key, key_rest, value, value_rest, allowed, state, c, REST: tl.constexpr, MASKED: tl.constexpr):
    """One block of keys of an online softmax. state: top score, total weight, sums of values."""
    top, total, acc, acc_rest = state
    if REST:
        scores = tl.dot(x, tl.trans(key), tl.dot(x_rest, tl.trans(key_rest)))
    else:
        scores = tl.dot(x, tl.trans(key))
    if MASKED:
        scores = tl.where(allowed, scores, -float("inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    weight = tl.exp2(scores * c - (new_top * c)[:, None])
    keep = tl.exp2((top - new_top) * c)
    total = total * keep + tl.sum(weight, 1)
    weight = weight.to(x.dtype)
    acc = tl.dot(weight, value, acc * keep[:, None])
    if REST:
        acc_rest = tl.dot(weight, value_rest, acc_rest * keep[:, None])
    return new_top, total, acc, acc_rest


@Kernel
@triton.jit
def _segment_kernel(
    q, k, v, out, bounds, stride, c, chunk,
    H: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M queries of one head and segment over the keys that it may see. c: scale of exponents of 2."""
    head, segment = tl.program_id(1), tl.program_id(2)
    start, stop = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    first = start + tl.program_id(0) * BLOCK_M
    if first >= stop:
        return
    m, n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    held = (first + m < stop)[:, None]
    at = q + (first + m)[:, None].to(tl.int64) * stride + head * D
    x, x_rest = _rows(at, held, D, MAIN, REST, False)
    acc = tl.zeros([BLOCK_M, MAIN], tl.float32)
    acc_rest = tl.zeros([BLOCK_M, REST if REST else 1], tl.float32)
    state = tl.full([BLOCK_M], -1e30, tl.float32), tl.zeros([BLOCK_M], tl.float32), acc, acc_rest
    ends = tl.minimum(start + ((first - start + m) // chunk + 1) * chunk, stop)
    seen_by_all = tl.minimum(start + ((first - start) // chunk + 1) * chunk, stop)
    last = tl.minimum(start + ((first - start + BLOCK_M - 1) // chunk + 1) * chunk, stop)
    free = start + (seen_by_all - start) // BLOCK_N * BLOCK_N
    key_at = k + n[:, None].to(tl.int64) * stride + head * D
    value_at = v + n[:, None].to(tl.int64) * stride + head * D
    for n0 in tl.range(start, free, BLOCK_N, num_stages=STAGES):
        by = (n0 + tl.full([1, 1], 0, tl.int64)) * stride
        there = (n >= 0)[:, None]
        key, key_rest = _rows(key_at + by, there, D, MAIN, REST, True)
        value, value_rest = _rows(value_at + by, there, D, MAIN, REST, True)
        state = _take(x, x_rest, key, key_rest, value, value_rest, there, state, c, REST, False)
    for n0 in tl.range(free, last, BLOCK_N, num_stages=1):
        by = (n0 + tl.full([1, 1], 0, tl.int64)) * stride
        there = (n0 + n < last)[:, None]
        key, key_rest = _rows(key_at + by, there, D, MAIN, REST, False)
        value, value_rest = _rows(value_at + by, there, D, MAIN, REST, False)
        allowed = (n0 + n)[None, :] < ends[:, None]
        state = _take(x, x_rest, key, key_rest, value, value_rest, allowed, state, c, REST, True)
    total, acc, acc_rest = state[1], state[2], state[3]
    to = out + (first + m)[:, None].to(tl.int64) * (H * D) + head * D
    d = tl.arange(0, MAIN)[None, :]
    tl.store(to + d, acc / total[:, None], held & (d < D))
    if REST:
        r = MAIN + tl.arange(0, REST)[None, :]
        tl.store(to + r, acc_rest / total[:, None], held & (r < D))


@Kernel
@triton.jit(do_not_specialize=("M",))
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


@Kernel
@triton.jit(do_not_specialize=("total",))
def _pixels_kernel(pixels, out, total, W: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // PADDED, at % PADDED
    inside = column < W
    x = tl.load(pixels + row * W + column, (at < total) & inside, 0).to(tl.float32)
    # Divided as a CPU divides, for the same bits: torch multiplies by 1 / 255 on a GPU.
    x = (tl.math.div_rn(x, 255.0) - 0.5) * 2.0
    tl.store(out + at, tl.where(inside, x, 0.0), at < total)


@Kernel
@triton.jit(do_not_specialize=("P",))
def _grid_weights_kernel(
    scores, factors, by_row, by_column, sizes, out, R, L, P, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    s, j = tl.program_id(1), tl.arange(0, BLOCK)
    rows, columns = tl.load(sizes + 2 * s).to(tl.int32), tl.load(sizes + 2 * s + 1).to(tl.int32)
    held, seen = j < L, j < tl.minimum(rows * columns, L)
    factor = tl.load(factors + s * L + j, seen, 0.0)
    row = j // columns
    column = j - row * columns
    for i in range(ROWS):
        r = tl.program_id(0) * ROWS + i
        there = seen & (r < R)
        at = (s.to(tl.int64) * R + r) * L + j
        x = tl.load(scores + at, there, 0.0) * factor
        x += tl.load(by_row + r * P + row, there, 0.0) + tl.load(by_column + r * P + column, there, 0.0)
        x = tl.where(seen, x, -float("inf"))
        weight = tl.exp2(x - tl.max(x, 0))
        tl.store(out + at, weight * (factor / tl.sum(weight, 0)), held & (r < R))


@cache
def _columns(dim: int, device: torch.device) -> tuple[int, int]:
    """Powers of two in which heads are computed: one part, padded, or on a Hopper two that are a quarter less."""
    whole = max(triton.next_power_of_2(dim), 16)
    main = whole // 2
    rest = max(triton.next_power_of_2(dim - main), 16)
    saves = dim < whole and main >= 16 and 4 * (main + rest) <= 3 * whole
    # Not measured on other GPUs.
    is_hopper = torch.cuda.get_device_capability(device)[0] == 9
    return (main, rest) if saves and is_hopper else (whole, 0)


class TritonEncoderOps(EncoderOps):
    chunks = True

    @staticmethod
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments) -> torch.Tensor:
        n, heads, dim = q.shape
        main, rest = _columns(dim, q.device)
        if dim < main and not segments.chunk:
            # Padding costs more arithmetic than these kernels are ahead of the library's.
            return EncoderOps.attend(q, k, v, segments)
        if q.stride(1) != dim or not q.stride() == k.stride() == v.stride():
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out = torch.empty(n, heads, dim, dtype=q.dtype, device=q.device)
        # Measured on an H200: small tiles for heads of 64, large ones in few registers for those of 72, two at a time.
        rows, stages, warps, registers = (128, 2, 8, 128) if rest and not segments.chunk else (64, 3, 4, None)
        _segment_kernel[(triton.cdiv(segments.longest, rows), heads, len(segments.bounds) - 1)](
            q, k, v, out, segments.bounds, q.stride(0), dim**-0.5 * _LOG2_E, segments.chunk or segments.longest,
            H=heads, D=dim, MAIN=main, REST=rest, BLOCK_M=rows, BLOCK_N=64, STAGES=stages,
            num_warps=warps, maxnreg=registers,
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

    @staticmethod
    def normalise_pixels(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        *shape, width = pixels.shape
        # Products of rows that are no multiples of 16 bytes take three times as long.
        padded = triton.cdiv(width, 8) * 8
        out = torch.empty(*shape, padded, dtype=dtype, device=pixels.device)
        _pixels_kernel[(triton.cdiv(out.numel(), 1024),)](
            pixels.contiguous(), out, out.numel(), W=width, PADDED=padded, BLOCK=1024, num_warps=4
        )
        return out

    @staticmethod
    def grid_weights(
        scores: torch.Tensor,
        factors: torch.Tensor,
        by_row: torch.Tensor,
        by_column: torch.Tensor,
        sizes: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        count, queries, length = scores.shape
        out = torch.empty(count, queries, length, dtype=dtype, device=scores.device)
        rows = 16
        _grid_weights_kernel[(triton.cdiv(queries, rows), count)](
            scores, factors, by_row, by_column, sizes, out, queries, length, by_row.shape[1],
            BLOCK=triton.next_power_of_2(length), ROWS=rows, num_warps=4,
        )  # fmt: skip
        return out
