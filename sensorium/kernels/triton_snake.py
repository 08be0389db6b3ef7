"""kernels.snake as one Triton kernel: torch's operations read and write the sound six times."""

# ruff: noqa: ANN001, ANN202 - pointers and numbers of a kernel have no Python types
from __future__ import annotations

import torch
import triton
import triton.language as tl

from sensorium.kernels.ahead import Kernel

_BLOCK = 1024


@Kernel
@triton.jit
def _snake_kernel(x, alpha, share, bias, y, C, L, left, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(x + row * L + at - left, (at >= left) & (at < left + L), 0.0).to(tl.float32)
    if BIAS:
        own += tl.where((at >= left) & (at < left + L), tl.load(bias + row % C).to(tl.float32), 0.0)
    wave = tl.sin(tl.load(alpha + row % C).to(tl.float32) * own)
    own += wave * tl.load(share + row % C).to(tl.float32) * wave
    tl.store(y + row * (left + L) + at, own, at < left + L)


def snake(
    x: torch.Tensor, alpha: torch.Tensor, share: torch.Tensor, left: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    b, c, length = x.shape
    y = torch.empty(b, c, left + length, dtype=x.dtype, device=x.device)
    grid = (b * c, triton.cdiv(left + length, _BLOCK))
    given = (x.contiguous(), alpha, share, alpha if bias is None else bias, y, c, length, left)
    _snake_kernel[grid](*given, BIAS=bias is not None, BLOCK=_BLOCK, num_warps=4)
    return y
