"""Vectors as clients want them: lists of numbers, or bytes of one of several number formats."""

# pyright: basic
# numpy's stubs leave the types of half of these calls unknown.
from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import pybase64

VectorType = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Array = np.ndarray
Endianness = Literal["native", "big", "little"]


def to_bytes(vector: np.ndarray, kind: VectorType = "float32", endianness: Endianness = "native") -> bytes:
    """Any shape of float32, row by row, rounded to the nearest (of two, the even) value of the format."""
    coded: Array = _CODERS[kind](np.ascontiguousarray(vector, np.float32))
    swapped = endianness not in ("native", sys.byteorder)
    return (coded.byteswap() if swapped else coded).tobytes()


def to_base64(vector: np.ndarray, kind: VectorType = "float32", endianness: Endianness = "native") -> str:
    return pybase64.b64encode(to_bytes(vector, kind, endianness)).decode()


def _bfloat16(values: Array) -> Array:
    """The upper half of each float32, rounded."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _half(values: Array) -> Array:
    return np.minimum(np.maximum(values, -65504), 65504).astype(np.float16)


def _fp8(mantissa_bits: int, bias: int, largest: int) -> Callable[[Array], Array]:
    """largest: the code of the largest finite value; what is beyond becomes that."""

    def encode(values: Array) -> Array:
        table: Array = _fp8_values(mantissa_bits, bias, largest)
        size = np.abs(values)
        found: Array = np.searchsorted(table, size)
        above: Array = np.minimum(np.maximum(found, 1), largest)
        low, high = size - table[above - 1], table[above] - size
        below = (low < high) | ((low == high) & (above % 2 == 1))
        code: Array = np.where(below, above - 1, above).astype(np.uint8)
        return code | (np.signbit(values).astype(np.uint8) << 7)

    return encode


@lru_cache
def _fp8_values(mantissa_bits: int, bias: int, largest: int) -> Array:
    """What the codes from 0 to `largest` stand for, ascending."""
    codes = np.arange(largest + 1)
    exponent, mantissa = codes >> mantissa_bits, (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    normal = (1 + mantissa) * 2.0 ** (exponent - bias)
    return np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), normal).astype(np.float32)


_CODERS: dict[VectorType, Callable[[Array], Array]] = {
    "float32": lambda values: values,
    "float16": _half,
    "bfloat16": _bfloat16,
    "fp8_e4m3": _fp8(3, 7, 0x7E),
    "fp8_e5m2": _fp8(2, 15, 0x7B),
}
