"""The pieces of a decoder layer on a GPU, fused for few rows: norms, products with what follows them, SwiGLU.

With few rows a product only streams its weight, so everything around it costs more than its arithmetic: one row goes
through a matrix-vector kernel that also normalises its input; up to 32 rows through tiles that are as tall as the
tensor cores want; more through cuBLAS. Those kernels are launched with programmatic dependence where the device has it
(compute capability 9.0): each may start while its predecessor drains, fetches weights, and waits before it reads what
the predecessor wrote. The gate/up product of thousands of rows is not cuBLAS's on a Hopper: its result, twice as large
as what SwiGLU makes of it, stays in registers.

M rows · N outputs · K inputs
"""

# ruff: noqa: ANN001, ANN202 - pointers and numbers of a kernel have no Python types
from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from sensorium.kernels.ahead import Kernel
from sensorium.kernels.reference import Norm, Ops, Product

_FEW_ROWS, _MANY_ROWS = 32, 2048


@cache
def dependent_launch(device: torch.device) -> bool:
    """Whether kernels may be launched before their predecessor has ended."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


@Kernel
@triton.jit
def _vector_kernel(
    w, x, scale, residual, y, N, eps,
    K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y [N] = w [N, K] x [K]. NORM: of the normalised x. GATED: w has 2 N rows, gate then up. ADD: plus residual."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    held = rows < N
    at = w + rows[:, None].to(tl.int64) * K + k[None, :]
    up = at + N.to(tl.int64) * K
    acc = tl.zeros([BN, BK], tl.float32)
    acc_up = tl.zeros([BN, BK], tl.float32)
    squares = tl.zeros([BK], tl.float32)
    now = tl.load(at, held[:, None], 0.0)
    now_up = tl.load(up, held[:, None], 0.0) if GATED else now
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    for k0 in tl.range(0, K, BK):
        more = held[:, None] & (k0 + BK < K)
        later = tl.load(at + k0 + BK, more, 0.0)
        later_up = tl.load(up + k0 + BK, more, 0.0) if GATED else later
        xs = tl.load(x + k0 + k).to(tl.float32)
        if NORM:
            squares += xs * xs
            xs *= tl.load(scale + k0 + k).to(tl.float32)
        acc += now.to(tl.float32) * xs[None, :]
        if GATED:
            acc_up += now_up.to(tl.float32) * xs[None, :]
        now, now_up = later, later_up
    result = tl.sum(acc, 1)
    factor = 1.0
    if NORM:
        factor = tl.rsqrt(tl.sum(squares, 0) / K + eps)
        result *= factor
    if GATED:
        result = result * tl.sigmoid(result) * tl.sum(acc_up, 1) * factor
    if ADD:
        result += tl.load(residual + rows, held, 0.0).to(tl.float32)
    tl.store(y + rows, result, held)


@Kernel
@triton.jit(do_not_specialize=("M",))
def _rows_kernel(
    w, x, residual, y, M, N,
    K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    GATED: tl.constexpr, ADD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y [M, N] = x [M, K] w^T for few rows; the weight takes the tall side of the tensor cores' tiles.

    GATED: the upper half of a tile's BN rows are rows of the gate, the lower half the same rows of up.
    """
    OUT: tl.constexpr = BN // 2 if GATED else BN
    n, m, k = tl.arange(0, BN), tl.arange(0, BM), tl.arange(0, BK)
    rows = tl.program_id(0) * OUT + n % OUT
    held = (rows < N)[:, None]
    at = w + (rows + n // OUT * N)[:, None].to(tl.int64) * K + k[None, :]
    xs = x + m[None, :] * K + k[:, None]
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    acc = tl.zeros([BN, BM], tl.float32)
    for k0 in tl.range(0, K, BK, num_stages=STAGES):
        acc = tl.dot(tl.load(at + k0, held, 0.0), tl.load(xs + k0, (m < M)[None, :], 0.0), acc)
    rows = tl.program_id(0) * OUT + tl.arange(0, OUT)
    to = m[None, :] * N + rows[:, None]
    stored = (rows < N)[:, None] & (m < M)[None, :]
    if GATED:
        gate, up = acc.reshape(2, OUT, BM).permute(1, 2, 0).split()
        acc = gate * tl.sigmoid(gate) * up
    if ADD:
        acc += tl.load(residual + to, stored, 0.0).to(tl.float32)
    tl.store(y + to, acc, stored)


@Kernel
@triton.jit
def _gated_kernel(
    x, w, y, M, N, K,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """y [M, N] = silu(gate) * up of many rows x [M, K], w [2 N, K] being the gate's rows, then up's; both described to
    the device's copy engine. Tiles of GROUP rows of tiles run together for the sake of the second-level cache."""
    tile, down, across = tl.program_id(0), tl.cdiv(M, BM), tl.cdiv(N, BN)
    first = tile // (GROUP * across) * GROUP
    high = tl.minimum(down - first, GROUP)
    inside = tile % (GROUP * across)
    m0, n0 = (first + inside % high) * BM, inside // high * BN
    gate = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    for k0 in tl.range(0, K, BK, num_stages=STAGES):
        rows = x.load([m0, k0])
        gate = tl.dot(rows, w.load([n0, k0]).T, gate)
        up = tl.dot(rows, w.load([N + n0, k0]).T, up)
    m, n = m0 + tl.arange(0, BM)[:, None], n0 + tl.arange(0, BN)[None, :]
    tl.store(y + m.to(tl.int64) * N + n, gate * tl.sigmoid(gate) * up, (m < M) & (n < N))


@Kernel
@triton.jit
def _norm_kernel(x, scale, y, eps, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    k = tl.arange(0, BLOCK)
    weight = tl.load(scale + k, k < K, 0.0).to(tl.float32)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64) * K
    xs = tl.load(x + row + k, k < K, 0.0).to(tl.float32)
    tl.store(y + row + k, xs * tl.rsqrt(tl.sum(xs * xs, 0) / K + eps) * weight, k < K)


@Kernel
@triton.jit
def _act_mul_kernel(x, y, N, BLOCK: tl.constexpr, PDL: tl.constexpr):
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    gate = tl.load(x + row * 2 * N + n, n < N, 0.0).to(tl.float32)
    up = tl.load(x + row * 2 * N + N + n, n < N, 0.0).to(tl.float32)
    tl.store(y + row * N + n, gate * tl.sigmoid(gate) * up, n < N)


def norm(x: torch.Tensor, rms: Norm) -> torch.Tensor:
    """x [M, K] -> [M, K]."""
    m, k = x.shape
    y = torch.empty_like(x)
    pdl = dependent_launch(x.device)
    block = triton.next_power_of_2(k)
    warps = min(max(block // 512, 1), 16)
    _norm_kernel[(m,)](x, rms.weight, y, rms.eps, K=k, BLOCK=block, PDL=pdl, num_warps=warps, launch_pdl=pdl)
    return y


def act_mul(x: torch.Tensor) -> torch.Tensor:
    """[M, 2 N] -> [M, N]."""
    m, n = x.shape[0], x.shape[1] // 2
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    pdl = dependent_launch(x.device)
    _act_mul_kernel[(m, triton.cdiv(n, 2048))](x, y, n, BLOCK=2048, PDL=pdl, num_warps=4, launch_pdl=pdl)
    return y


def multiply(
    x: torch.Tensor,
    linear: Product,
    *,
    rms: Norm | None = None,
    gated: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [M, K] times the weight, with what was asked for around it. A residual that is given may be overwritten."""
    m, k = x.shape
    n = linear.weight.shape[0] // (2 if gated else 1)
    depth = next((size for size in (512, 256, 128, 64) if k % size == 0), 0)
    if m > _FEW_ROWS or not depth or linear.bias is not None or not x.is_contiguous():
        return _library_product(x, linear, rms, gated, residual)
    pdl = dependent_launch(x.device)
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    added = y if residual is None else residual
    if m == 1:
        scale, eps = (y, 0.0) if rms is None else (rms.weight, rms.eps)
        # Shapes measured on an H200: two weights at once want long rows, one wants several.
        tile = (1, 4096, 4) if gated and k % 4096 == 0 else (16, depth, 8)
        _vector_kernel[(triton.cdiv(n, tile[0]),)](
            linear.weight, x, scale, added, y, n, eps, K=k, BN=tile[0], BK=tile[1],
            NORM=rms is not None, GATED=gated, ADD=residual is not None, PDL=pdl, num_warps=tile[2], launch_pdl=pdl,
        )  # fmt: skip
        return y
    if rms is not None:
        x = norm(x, rms)
    _rows_kernel[(triton.cdiv(n, 32 if gated else 64),)](
        linear.weight, x, added, y, m, n, K=k, BM=max(triton.next_power_of_2(m), 16), BN=64, BK=min(depth, 128),
        STAGES=4 if gated else 6, GATED=gated, ADD=residual is not None, PDL=pdl, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
    return y


def _library_product(
    x: torch.Tensor, linear: Product, rms: Norm | None, gated: bool, residual: torch.Tensor | None
) -> torch.Tensor:
    if rms is not None:
        x = norm(x, rms)
    if gated:
        return _gated_product(x, linear.weight) if _takes_tiles(x, linear) else act_mul(linear(x))
    if residual is None:
        return linear(x)
    return residual.addmm_(x, linear.weight.t()) if linear.bias is None else residual.add_(linear(x))


@cache
def _is_hopper(device: torch.device) -> bool:
    """Whether the tiles of _gated_product fit: elsewhere there is less shared memory, or it has not been measured."""
    return torch.cuda.get_device_capability(device)[0] == 9


def _takes_tiles(x: torch.Tensor, linear: Product) -> bool:
    (m, k), n = x.shape, linear.weight.shape[0] // 2
    fits = k % 64 == 0 and n % 128 == 0 and linear.bias is None and x.is_contiguous() and linear.weight.is_contiguous()
    return m >= _MANY_ROWS and fits and _is_hopper(x.device)


def _gated_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [M, K], weight [2 N, K] -> [M, N]. What lies between the product and SwiGLU stays in registers."""
    (m, k), n = x.shape, len(weight) // 2
    y = torch.empty(m, n, dtype=x.dtype, device=x.device)
    # Sizes measured on an H200.
    rows, columns, depth = 128, 128, 64
    x_tiles = TensorDescriptor(x, [m, k], [k, 1], [rows, depth])
    w_tiles = TensorDescriptor(weight, [2 * n, k], [k, 1], [columns, depth])
    _gated_kernel[(triton.cdiv(m, rows) * triton.cdiv(n, columns),)](
        x_tiles, w_tiles, y, m, n, k, BM=rows, BN=columns, BK=depth, GROUP=8, STAGES=4, num_warps=8
    )
    return y


def head_product(weight: torch.Tensor) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]] | None:
    """A product for the tall weight [V, E] of an output head, and the copy of the weight that it reads.

    The copy has rows added up to a whole tile: for an odd number of them cuBLAS takes kernels of the generation before.
    None if the kernels here do not take the width.
    """
    rows, width = weight.shape
    if width % 64:
        return None
    padded = F.pad(weight, (0, 0, 0, -rows % 128))
    held = padded[:rows]

    def forward(x: torch.Tensor) -> torch.Tensor:
        if len(x) > _FEW_ROWS:
            return F.linear(x, padded)[:, :rows]
        return multiply(x, _Weight(held))

    return held, forward


class _Weight(NamedTuple):
    weight: torch.Tensor
    bias: None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class TritonOps(Ops):
    """The ops of a decoder layer through the kernels here."""

    head_product = staticmethod(head_product)

    @staticmethod
    def norm(x: torch.Tensor, rms: Norm) -> torch.Tensor:
        return norm(x, rms)

    @staticmethod
    def norm_linear(x: torch.Tensor, rms: Norm, product: Product) -> torch.Tensor:
        return multiply(x, product, rms=rms)

    @staticmethod
    def norm_gated(x: torch.Tensor, rms: Norm, gate_up: Product) -> torch.Tensor:
        return multiply(x, gate_up, rms=rms, gated=True)

    @staticmethod
    def linear_add(x: torch.Tensor, product: Product, residual: torch.Tensor) -> torch.Tensor:
        return multiply(x, product, residual=residual)
