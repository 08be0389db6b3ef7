"""What numba lacks: vector registers, atomic counters and raw memory, each as a few LLVM instructions.

Addresses are int64. Everything here is inlined into the kernels that call it.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - compiled functions have LLVM types, not Python's
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_HOST = llvmlite.binding.get_host_cpu_features()
LANES = 16 if _HOST.get("avx512f") else 8 if _HOST.get("avx2") else 4
"""float32 numbers in a vector register."""
PANEL = 2 * LANES
"""Columns of a tile."""

ONE, ZERO = np.float32(1.0), np.float32(0.0)

# Division by zero is infinity, as in C: Python's check would keep loops from using vectors.
kernel = njit(error_model="numpy")
# The same where sums may be taken in any order, without which they cannot use vectors.
summing = njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR, _WIDE = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)


def _number(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _pointer(builder: ir.IRBuilder, base: ir.Value, offset: int, kind: ir.Type) -> ir.Value:
    return builder.inttoptr(builder.add(base, _number(offset)), kind.as_pointer())


def _spread(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_WIDE, [0] * LANES))


def _panel_row(builder: ir.IRBuilder, base: ir.Value, in_half: bool) -> list[ir.Value]:
    """PANEL numbers as two vectors. With in_half column i and column LANES + i are the halves of one word."""
    if not in_half:
        return [builder.load(_pointer(builder, base, v * LANES * 4, _VECTOR), align=4) for v in range(2)]
    words = builder.load(builder.inttoptr(base, _WIDE.as_pointer()), align=4)
    # A bfloat16 is the upper half of the float32 of the same value.
    low = builder.shl(words, ir.Constant(_WIDE, [16] * LANES))
    high = builder.and_(words, ir.Constant(_WIDE, [0xFFFF0000] * LANES))
    return [builder.bitcast(low, _VECTOR), builder.bitcast(high, _VECTOR)]


def _prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), (ir.IntType(8).as_pointer(), _I32, _I32, _I32))
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    where = builder.inttoptr(address, ir.IntType(8).as_pointer())
    read, keep, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
    builder.call(function, (where, read, keep, data))


def _make_tile(rows: int, in_half: bool = False, ahead: int = 0) -> Callable[..., Any]:
    """tile(a, lda, b, ldb, depth, c, ldc): c[r, j] += sum over i < depth of a[r, i] * b[i, j].

    For `rows` rows and PANEL columns, whose sums stay in registers. lda, ldb and ldc are bytes from row to row; depth
    is at least 1. b is float32, or with in_half bfloat16 whose columns _panel_row finds. ahead: bytes by which b is
    asked for before it is needed.
    """

    def build(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        a, lda, b, ldb, depth, c, ldc = args
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        entry, body, done = builder.block, builder.append_basic_block(), builder.append_basic_block()
        starts = [builder.add(a, builder.mul(lda, _number(r))) for r in range(rows)]
        builder.branch(body)
        builder.position_at_end(body)
        i, row = builder.phi(_I64), builder.phi(_I64)
        sums = [[builder.phi(_VECTOR) for _ in range(2)] for _ in range(rows)]
        panel = _panel_row(builder, row, in_half)
        for line in range(0, PANEL * (2 if in_half else 4), _LINE) if ahead else ():
            _prefetch(builder, builder.add(row, _number(ahead + line)))
        totals = []
        for start, before in zip(starts, sums, strict=True):
            number = builder.load(builder.inttoptr(builder.add(start, i), _F32.as_pointer()), align=4)
            spread = _spread(builder, number)
            totals.append([builder.call(fma, (spread, panel[v], before[v])) for v in range(2)])
        after = builder.add(i, _number(4))
        for phi, first, later in ((i, _number(0), after), (row, b, builder.add(row, ldb))):
            phi.add_incoming(first, entry)
            phi.add_incoming(later, body)
        for before, total in zip(sums, totals, strict=True):
            for v in range(2):
                before[v].add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), entry)
                before[v].add_incoming(total[v], body)
        builder.cbranch(builder.icmp_signed("<", after, builder.mul(depth, _number(4))), body, done)
        builder.position_at_end(done)
        for r, total in enumerate(totals):
            for v in range(2):
                to = _pointer(builder, builder.add(c, builder.mul(ldc, _number(r))), v * LANES * 4, _VECTOR)
                builder.store(builder.fadd(builder.load(to, align=4), total[v]), to, align=4)
        return context.get_dummy_value()

    @intrinsic
    def tile(typing, a, lda, b, ldb, depth, c, ldc):
        return types.void(*[types.int64] * 7), build

    return tile


# A tile of 8 x 2 sums needs more than AVX2's 16 registers.
_WIDE_TILES = LANES != 8
_LINE = 64
# Rows of a panel between the one in use and the one asked for. A row of bfloat16 is a single line, 16 cycles of a tile:
# too little for a core to foresee early enough. With float32 it does, and asking took a third longer.
_ROWS_AHEAD = 40


def _make_product(in_half: bool) -> Callable[..., Any]:
    """product(rows, a, lda, b, ldb, depth, c): c [rows, PANEL] += a [rows, depth] @ b [depth, PANEL].

    lda and ldb are bytes from row to row, c is dense. b is float32, or with in_half a dense panel of bfloat16.
    """
    ahead = _ROWS_AHEAD * PANEL * 2 if in_half else 0
    # With fewer rows the memory is what limits, and asking twice only takes of its time.
    tile1, tile2 = (_make_tile(rows, in_half) for rows in (1, 2))
    tile4, tile8 = (_make_tile(rows, in_half, ahead) for rows in (4, 8))

    @kernel
    def product(rows, a, lda, b, ldb, depth, c):
        ldc = PANEL * 4
        r = 0
        if _WIDE_TILES:
            while rows - r >= 8:
                tile8(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc)
                r += 8
        while rows - r >= 4:
            tile4(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc)
            r += 4
        if rows - r >= 2:
            tile2(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc)
            r += 2
        if rows - r >= 1:
            tile1(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc)

    return product


product, product_half = _make_product(in_half=False), _make_product(in_half=True)


def _rows(builder: ir.IRBuilder, base: ir.Value, stride: ir.Value) -> list[ir.Value]:
    return [builder.add(base, builder.mul(stride, _number(row))) for row in range(LANES)]


def _pick(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
    """Lanes of a, then of b, which count on from a's."""
    return builder.shuffle_vector(a, b, ir.Constant(_WIDE, lanes))


@intrinsic
def dots(typing, vector, rows, stride, depth, out):
    """out [LANES] = the products of a vector [depth] with LANES rows, `stride` bytes apart. LANES divides depth."""

    def build(context, builder, signature, args):
        vector, rows, stride, depth, out = args
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
        starts = _rows(builder, rows, stride)
        entry, body, done = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(body)
        builder.position_at_end(body)
        i = builder.phi(_I64)
        sums = [builder.phi(_VECTOR) for _ in range(LANES)]
        mine = builder.load(builder.inttoptr(builder.add(vector, i), _VECTOR.as_pointer()), align=4)
        totals = []
        for start, before in zip(starts, sums, strict=True):
            row = builder.load(builder.inttoptr(builder.add(start, i), _VECTOR.as_pointer()), align=4)
            totals.append(builder.call(fma, (mine, row, before)))
        after = builder.add(i, _number(LANES * 4))
        i.add_incoming(_number(0), entry)
        i.add_incoming(after, body)
        for before, total in zip(sums, totals, strict=True):
            before.add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), entry)
            before.add_incoming(total, body)
        builder.cbranch(builder.icmp_signed("<", after, builder.mul(depth, _number(4))), body, done)
        builder.position_at_end(done)
        even, odd = list(range(0, 2 * LANES, 2)), list(range(1, 2 * LANES, 2))
        while len(totals) > 1:  # add neighbouring lanes until each sum is one lane
            pairs = zip(totals[::2], totals[1::2], strict=True)
            totals = [builder.fadd(_pick(builder, a, b, even), _pick(builder, a, b, odd)) for a, b in pairs]
        builder.store(totals[0], builder.inttoptr(out, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), build


@intrinsic
def transpose(typing, rows, stride, out, out_stride):
    """Turn LANES x LANES numbers around; strides are bytes from row to row."""

    def build(context, builder, signature, args):
        rows, stride, out, out_stride = args
        pointer = _VECTOR.as_pointer()
        square = [builder.load(builder.inttoptr(row, pointer), align=4) for row in _rows(builder, rows, stride)]
        step = 1
        while step < LANES:  # swap the off-diagonal quarters of ever larger squares
            low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
            high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
            for i in range(LANES):
                if not i & step:
                    a, b = square[i], square[i + step]
                    square[i], square[i + step] = _pick(builder, a, b, low), _pick(builder, a, b, high)
            step *= 2
        for row, to in zip(square, _rows(builder, out, out_stride), strict=True):
            builder.store(row, builder.inttoptr(to, pointer), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), build


@intrinsic
def prefetch(typing, address):
    """Begin to bring the cache line at an address closer."""

    def build(context, builder, signature, args):
        _prefetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), build


@intrinsic
def floats(typing, address):
    """The memory at an address as a pointer to float32."""

    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], _F32.as_pointer())

    return types.CPointer(types.float32)(types.int64), build


@intrinsic
def memory(typing, address):
    """The memory at an address, for carray."""

    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), build


@intrinsic
def integers(typing, address):
    """The memory at an address as a pointer to int64."""

    def build(context, builder, signature, args):
        return builder.inttoptr(args[0], _I64.as_pointer())

    return types.CPointer(types.int64)(types.int64), build


@intrinsic
def add_atomic(typing, address, number):
    """Add to the int64 at an address, and return what it was."""

    def build(context, builder, signature, args):
        where = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", where, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), build


@kernel
def claim(counter):
    """The next tile of a stage, for the caller alone."""
    return add_atomic(counter, 1)


@intrinsic
def load_atomic(typing, address):
    def build(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], _I64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), build


@intrinsic
def call(typing, address):
    """Call a C function that takes nothing; what it returns is dropped."""

    def build(context, builder, signature, args):
        function = builder.inttoptr(args[0], ir.FunctionType(_I32, ()).as_pointer())
        builder.call(function, ())
        return context.get_dummy_value()

    return types.void(types.int64), build


@intrinsic
def _round(typing, number):
    def build(context, builder, signature, args):
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [_F32]), args)

    return types.float32(types.float32), build


@intrinsic
def _power_of_two(typing, exponent):
    """2 to a whole float32 in -126 .. 127, from its bits."""

    def build(context, builder, signature, args):
        bits = builder.add(builder.fptosi(args[0], _I32), ir.Constant(_I32, 127))
        return builder.bitcast(builder.shl(bits, ir.Constant(_I32, 23)), _F32)

    return types.float32(types.float32), build


_LOW, _HIGH = np.float32(-87.0), np.float32(88.0)
_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: the first has few enough bits that a whole number times it is exact.
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C2, _C3, _C4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
_C5, _C6, _C7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)


@kernel
def exp(x):
    """e to a float32, within 2 units in the last place; below -87 it stays at exp(-87), 1.6e-38."""
    # Not min and max: what is not a number has to stay so.
    x = _LOW if x < _LOW else x
    x = _HIGH if x > _HIGH else x
    whole = _round(x * _LOG2_E)
    r = (x - whole * _LN_2_HIGH) - whole * _LN_2_LOW
    series = ONE + r * (ONE + r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))))
    return series * _power_of_two(whole)
