"""One pass of scaling a picture as a Triton kernel; see resample for the arithmetic."""

# ruff: noqa: ANN001, ANN202 - pointers and numbers of a kernel have no Python types
from __future__ import annotations

import torch
import triton
import triton.language as tl

from sensorium.kernels.resample import BITS, taps_on

_BLOCK = 512


# Compiled once, at the start: sides are 1, multiples of 16 or neither, and each would be a kernel of its own.
@triton.jit(do_not_specialize=("total", "N", "M", "B", "T"))
def _scale_kernel(x, starts, weights, y, total, N, M, B, T, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """y [A, M, B] from x [A, N, B], a block of its numbers each: of numbers behind the axis neighbours are loaded."""
    out = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    held = out < total
    b = out % B
    m = (out // B) % M
    start = tl.load(starts + m, held, 0)
    at = x + (out // (B * M) * N + start) * B + b
    sums = tl.full([BLOCK], 1 << (BITS - 1), tl.int32)
    for tap in range(T):
        value = tl.load(at + tap * B, held & (start + tap < N), 0).to(tl.int32)
        sums += value * tl.load(weights + m * T + tap, held, 0)
    sums = tl.minimum(tl.maximum(sums >> BITS, 0), 255)
    tl.store(y + out, sums.to(tl.uint8), held)


def scale(x: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [A, N, B] -> [A, size, B]."""
    a, n, b = x.shape
    starts, weights = taps_on(n, size, x.device)
    y = torch.empty(a, size, b, dtype=torch.uint8, device=x.device)
    grid = (triton.cdiv(y.numel(), _BLOCK),)
    with torch.cuda.device(x.device):
        _scale_kernel[grid](
            x.contiguous(), starts, weights, y, y.numel(), n, size, b, weights.shape[1], BITS=BITS, BLOCK=_BLOCK
        )
    return y
