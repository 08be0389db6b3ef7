"""A decoder's step as one compiled call that several threads enter together.

Work is cut into stages, a stage into tiles. Threads claim tiles from a counter, so one that comes late, or loses its
core, holds up at most the tile it is in. N packed tokens · H query heads · K key/value heads · D head dim
"""

# ruff: noqa: ANN001, ANN201, ANN202 - compiled functions have LLVM types, not Python's
from __future__ import annotations

import math

import numpy as np
from numba import carray, cfunc, from_dtype, types

from sensorium.kernels.jit.attention import attend
from sensorium.kernels.jit.fields import LAYER, PRODUCT, STEP, TILE_ROWS
from sensorium.kernels.jit.vector import (
    ONE,
    PANEL,
    ZERO,
    add_atomic,
    call,
    claim,
    exp,
    floats,
    integers,
    kernel,
    load_atomic,
    memory,
    product,
    product_half,
    summing,
)

_SPINS = 4000
_NORM_ROWS = 8
_MANY_UNITS = 8

STORE, ADD, GATE = 0, 1, 2


@kernel
def _end_stage(step, counter, tiles):
    """Wait until every tile of a stage is done. Returns the next stage's counter."""
    spins = 0
    while load_atomic(counter + 8) < tiles:
        spins += 1
        if spins > _SPINS and step.give_way != 0:
            call(step.give_way)
    return counter + 64


@summing
def _squares(x, n):
    total = ZERO
    for i in range(n):
        total += x[i] * x[i]
    return total


@kernel
def _norm(step, counter, rows, x, weight, out):
    """out = RMS norm of x [rows, width]."""
    n = step.width
    tiles = (rows + _NORM_ROWS - 1) // _NORM_ROWS
    w = floats(weight)
    while True:
        tile = claim(counter)
        if tile >= tiles:
            break
        for row in range(tile * _NORM_ROWS, min((tile + 1) * _NORM_ROWS, rows)):
            source, to = floats(x + row * n * 4), floats(out + row * n * 4)
            factor = ONE / np.float32(math.sqrt(_squares(source, n) / np.float32(n) + step.eps))
            for i in range(n):
                to[i] = source[i] * factor * w[i]
        add_atomic(counter + 8, 1)
    return _end_stage(step, counter, tiles)


@kernel
def _linear(step, counter, scratch, x, rows, n_in, weight, bias, n_out, out, kind):
    """out [rows, n_out] = x [rows, n_in] @ weight + bias; ADD adds to out.

    GATE: a panel holds LANES columns of gate and the same of up, and out [rows, n_out] is silu(gate) * up.
    """
    columns = PANEL // 2 if kind == GATE else PANEL
    panels = (n_out + columns - 1) // columns
    tiles = panels * ((rows + TILE_ROWS - 1) // TILE_ROWS)
    sums = floats(scratch)
    while True:
        tile = claim(counter)
        if tile >= tiles:
            break
        panel, first = tile % panels, tile // panels * TILE_ROWS
        num = min(TILE_ROWS, rows - first)
        for i in range(num * PANEL):
            sums[i] = ZERO
        a = x + first * n_in * 4
        if step.half != 0:
            product_half(num, a, n_in * 4, weight + panel * n_in * PANEL * 2, PANEL * 2, n_in, scratch)
        else:
            product(num, a, n_in * 4, weight + panel * n_in * PANEL * 4, PANEL * 4, n_in, scratch)
        width = min(columns, n_out - panel * columns)
        for r in range(num):
            to = floats(out + ((first + r) * n_out + panel * columns) * 4)
            _write(floats(scratch + r * PANEL * 4), to, bias + panel * columns * 4 if bias != 0 else 0, width, kind)
        add_atomic(counter + 8, 1)
    return _end_stage(step, counter, tiles)


@kernel
def _write(source, to, bias, width, kind):
    """One row of a product's tile to where it belongs."""
    if kind == GATE:
        for i in range(width):
            gate = source[i]
            to[i] = gate / (ONE + exp(-gate)) * source[PANEL // 2 + i]
    elif kind == ADD:
        for i in range(width):
            to[i] += source[i]
    elif bias != 0:
        b = floats(bias)
        for i in range(width):
            to[i] = source[i] + b[i]
    else:
        for i in range(width):
            to[i] = source[i]


@kernel
def _rotate(step, head, row, norm, to):
    """Normalise a head [D] where `norm` says so, rotate it by its row's angles, and write it to `to`."""
    d = step.head_dim
    half = d // 2
    cos, sin = floats(step.cos + row * d * 4), floats(step.sin + row * d * 4)
    source, out = floats(head), floats(to)
    if norm != 0:
        w = floats(norm)
        factor = ONE / np.float32(math.sqrt(_squares(source, d) / np.float32(d) + step.eps))
        for i in range(d):
            source[i] = source[i] * factor * w[i]
    for i in range(half):
        a, b = source[i], source[i + half]
        out[i] = a * cos[i] + b * sin[i]
        out[i + half] = b * cos[i + half] + a * sin[i + half]


@kernel
def _store(step, counter, layer):
    """Normalise and rotate q and k; q stays in qkv, k and v go to their slots of the cache."""
    d, heads, kv_heads = step.head_dim, step.heads, step.kv_heads
    tiles = (step.rows + _NORM_ROWS - 1) // _NORM_ROWS
    slots = integers(step.slots)
    while True:
        tile = claim(counter)
        if tile >= tiles:
            break
        for row in range(tile * _NORM_ROWS, min((tile + 1) * _NORM_ROWS, step.rows)):
            q = step.qkv + row * (heads + 2 * kv_heads) * d * 4
            k, cached = q + heads * d * 4, slots[row] * kv_heads * d * 4
            for head in range(heads):
                _rotate(step, q + head * d * 4, row, layer.q_norm, q + head * d * 4)
            for head in range(kv_heads):
                _rotate(step, k + head * d * 4, row, layer.k_norm, layer.keys + cached + head * d * 4)
            source, to = floats(k + kv_heads * d * 4), floats(layer.values + cached)
            for i in range(kv_heads * d):
                to[i] = source[i]
        add_atomic(counter + 8, 1)
    return _end_stage(step, counter, tiles)


@kernel
def _keep(step, counter, n_q):
    """Move the kept rows of x and mixed to the front. They ascend, so none is overwritten before it has moved."""
    kept = integers(step.kept)
    while claim(counter) < 1:
        for i in range(step.num_kept):
            source, to = floats(step.x + kept[i] * step.width * 4), floats(step.x + i * step.width * 4)
            for j in range(step.width):
                to[j] = source[j]
            source, to = floats(step.mixed + kept[i] * n_q * 4), floats(step.mixed + i * n_q * 4)
            for j in range(n_q):
                to[j] = source[j]
        add_atomic(counter + 8, 1)
    return _end_stage(step, counter, 1)


@kernel
def _layer(step, layer, counter, scratch, is_last):
    rows, d = step.rows, step.head_dim
    n_q, n_qkv = step.heads * d, (step.heads + 2 * step.kv_heads) * d
    counter = _norm(step, counter, rows, step.x, layer.norm1, step.normed)
    counter = _linear(
        step, counter, scratch, step.normed, rows, step.width, layer.qkv, layer.qkv_bias, n_qkv, step.qkv, STORE
    )
    counter = _store(step, counter, layer)
    # Few units are shared out head by head, many as they are.
    parts = step.kv_heads if step.num_units < _MANY_UNITS else 1
    tiles = step.num_units * parts
    while True:
        tile = claim(counter)
        if tile >= tiles:
            break
        unit, part = tile // parts, tile % parts
        attend(step, layer, unit, part, step.kv_heads // parts, scratch)
        add_atomic(counter + 8, 1)
    counter = _end_stage(step, counter, tiles)
    if is_last and step.num_kept < rows:
        counter, rows = _keep(step, counter, n_q), step.num_kept
    counter = _linear(step, counter, scratch, step.mixed, rows, n_q, layer.out, 0, step.width, step.x, ADD)
    counter = _norm(step, counter, rows, step.x, layer.norm2, step.normed)
    counter = _linear(
        step, counter, scratch, step.normed, rows, step.width, layer.gate_up, 0, step.intermediate, step.gated, GATE
    )
    return _linear(step, counter, scratch, step.gated, rows, step.intermediate, layer.down, 0, step.width, step.x, ADD)


@cfunc(types.void(types.CPointer(from_dtype(STEP))), cache=True)
def run_step(pointer):
    """Every layer of a decoder and its last norm, over packed tokens; STEP says what and where."""
    step = carray(pointer, 1)[0]
    scratch = step.scratch + add_atomic(step.entered, 1) * step.scratch_bytes
    layers = carray(memory(step.layers), step.num_layers, LAYER)
    counter = step.counters
    for i in range(step.num_layers):
        counter = _layer(step, layers[i], counter, scratch, i == step.num_layers - 1)
    _norm(step, counter, step.num_kept, step.x, step.final_norm, step.out)


@cfunc(types.void(types.CPointer(from_dtype(PRODUCT))), cache=True)
def run_product(pointer):
    """One matrix product; PRODUCT says which."""
    p = carray(pointer, 1)[0]
    scratch = p.scratch + add_atomic(p.entered, 1) * p.scratch_bytes
    _linear(p, p.counters, scratch, p.x, p.rows, p.n_in, p.weight, p.bias, p.n_out, p.out, STORE)
