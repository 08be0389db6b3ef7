"""Attention over the paged KV cache: the queries of one KV head in one unit, with the softmax computed as keys come.

A unit is up to UNIT_ROWS consecutive tokens of a sequence. G query heads share a KV head; R = G x tokens rows attend
together, token by token, to PANEL keys at a time. D head dim. LANES divides both D and the block size, so LANES keys
lie evenly spaced in one block.
"""

# ruff: noqa: ANN001, ANN201, ANN202 - compiled functions have LLVM types, not Python's
from __future__ import annotations

import numpy as np

from sensorium.kernels.jit.vector import (
    LANES,
    ONE,
    PANEL,
    ZERO,
    dots,
    exp,
    floats,
    integers,
    kernel,
    prefetch,
    product,
    summing,
    transpose,
)

_LOWEST = np.float32(-1e30)
# Rows up to which dot products beat turning the keys around for a matrix product.
_DOT_ROWS = 8


def scratch_bytes(rows: int, kv_heads: int, head_dim: int) -> int:
    """What `attend` needs for R rows and every KV head."""
    chunks = -(-head_dim // PANEL)
    return 4 * (PANEL * max(head_dim, PANEL) + rows * (PANEL + kv_heads * (head_dim + chunks * PANEL + 2)))


@kernel
def _find(step, sequence, kv_head, position):
    """Bytes from the start of a layer's keys or values to those of a position."""
    table = integers(step.tables + sequence * step.table_width * 8)
    slot = table[position // step.block_size] * step.block_size + position % step.block_size
    return (slot * step.kv_heads + kv_head) * step.head_dim * 4


@kernel
def _expect(step, cache, sequence, kv_head, num_heads, start, num):
    """Ask for up to PANEL keys or values from a position on: blocks lie anywhere, so no core foresees the next."""
    width, stride = step.head_dim * 4, step.kv_heads * step.head_dim * 4
    for group in range(0, min(num, PANEL), LANES):
        base = cache + _find(step, sequence, kv_head, start + group)
        for j in range(LANES):
            for at in range(0, num_heads * width, 64):
                prefetch(base + j * stride + at)


@kernel
def _score(step, layer, sequence, kv_head, start, num, q, rows, panel, scores):
    """scores [R, PANEL] = q [R, D] times the `num` keys from position `start` on; what is beyond them is undefined."""
    d, stride = step.head_dim, step.kv_heads * step.head_dim * 4
    for group in range(0, num, LANES):
        keys = layer.keys + _find(step, sequence, kv_head, start + group)
        if rows <= _DOT_ROWS:
            for r in range(rows):
                dots(q + r * d * 4, keys, stride, d, scores + (r * PANEL + group) * 4)
        else:
            for i in range(0, d, LANES):
                transpose(keys + i * 4, stride, panel + (i * PANEL + group) * 4, PANEL * 4)
    if rows > _DOT_ROWS:
        out = floats(scores)
        for i in range(rows * PANEL):
            out[i] = ZERO
        product(rows, q, d * 4, panel, PANEL * 4, d, scores)


@summing
def _weigh(scores, seen, state):
    """Turn a row of scores, of which `seen` count, into weights. Returns the factor on what was summed before.

    state: the largest score so far, and the sum of the weights.
    """
    s, kept = floats(scores), floats(state)
    for j in range(seen, PANEL):
        s[j] = _LOWEST
    top = kept[0]
    for j in range(PANEL):
        top = s[j] if s[j] > top else top
    total = ZERO
    for j in range(PANEL):
        s[j] = exp(s[j] - top)
        total += s[j]
    for j in range(seen, PANEL):
        s[j] = ZERO
    factor = exp(kept[0] - top)
    kept[0], kept[1] = top, kept[1] * factor + total
    return factor


@kernel
def _add_values(step, layer, sequence, kv_head, start, num, weights, rows, panel, sums):
    """sums [chunks, R, PANEL] += weights [R, PANEL] times `num` values, a panel of columns at a time."""
    d, stride = step.head_dim, step.kv_heads * step.head_dim * 4
    for group in range(0, num, LANES):
        depth = min(LANES, num - group)
        values = layer.values + _find(step, sequence, kv_head, start + group)
        for chunk in range((d + PANEL - 1) // PANEL):
            where, ldb, width = values + chunk * PANEL * 4, stride, d - chunk * PANEL
            if width < PANEL:  # the cache may end before a whole panel does
                for j in range(depth):
                    source, to = floats(where + j * stride), floats(panel + j * PANEL * 4)
                    for i in range(width):
                        to[i] = source[i]
                where, ldb = panel, PANEL * 4
            product(rows, weights + group * 4, PANEL * 4, where, ldb, depth, sums + chunk * rows * PANEL * 4)


@kernel
def _begin(step, unit, kv_head, q, rows, sums, state):
    """Collect a unit's queries, scaled, as q [R, D]; clear the sums."""
    d, group = step.head_dim, step.heads // step.kv_heads
    first, wide = integers(step.units + unit * 32)[0], (step.heads + 2 * step.kv_heads) * d
    for r in range(rows):
        source = floats(step.qkv + ((first + r // group) * wide + (kv_head * group + r % group) * d) * 4)
        to, kept = floats(q + r * d * 4), floats(state + r * 8)
        for i in range(d):
            to[i] = source[i] * step.scale
        kept[0], kept[1] = _LOWEST, ZERO
    total = floats(sums)
    for i in range((d + PANEL - 1) // PANEL * rows * PANEL):
        total[i] = ZERO


@kernel
def _scale(row, factor):
    to = floats(row)
    for i in range(PANEL):
        to[i] *= factor


@kernel
def _finish(step, first, kv_head, rows, sums, state):
    """Write a unit's rows of `mixed`."""
    d, group = step.head_dim, step.heads // step.kv_heads
    for r in range(rows):
        to = floats(step.mixed + ((first + r // group) * step.heads + kv_head * group + r % group) * d * 4)
        factor = ONE / floats(state + r * 8)[1]
        for chunk in range((d + PANEL - 1) // PANEL):
            source = floats(sums + (chunk * rows + r) * PANEL * 4)
            for i in range(min(PANEL, d - chunk * PANEL)):
                to[chunk * PANEL + i] = source[i] * factor


@kernel
def attend(step, layer, unit, first_head, num_heads, scratch):
    """Write the rows of `mixed` that belong to a unit and some KV heads.

    The heads take turns at each PANEL of keys, as in memory they lie side by side.
    """
    d, group = step.head_dim, step.heads // step.kv_heads
    about = integers(step.units + unit * 32)
    first, count, position, sequence = about[0], about[1], about[2], about[3]
    rows, chunks = count * group, (d + PANEL - 1) // PANEL
    panel = scratch
    scores = panel + PANEL * max(d, PANEL) * 4
    kept = scores + rows * PANEL * 4
    q_bytes, sums_bytes = rows * d * 4, chunks * rows * PANEL * 4
    per_head = q_bytes + sums_bytes + rows * 8
    for i in range(num_heads):
        q = kept + i * per_head
        _begin(step, unit, first_head + i, q, rows, q + q_bytes, q + q_bytes + sums_bytes)
    for start in range(0, position + count, PANEL):
        num = min(PANEL, position + count - start)
        _expect(step, layer.values, sequence, first_head, num_heads, start, num)
        _expect(step, layer.keys, sequence, first_head, num_heads, start + PANEL, position + count - start - PANEL)
        for i in range(num_heads):
            q = kept + i * per_head
            sums = q + q_bytes
            _score(step, layer, sequence, first_head + i, start, num, q, rows, panel, scores)
            for r in range(rows):
                seen = max(min(position + r // group + 1 - start, num), 0)
                factor = _weigh(scores + r * PANEL * 4, seen, sums + sums_bytes + r * 8)
                if factor != ONE:
                    for chunk in range(chunks):
                        _scale(sums + (chunk * rows + r) * PANEL * 4, factor)
            _add_values(step, layer, sequence, first_head + i, start, num, scores, rows, panel, sums)
    for i in range(num_heads):
        sums = kept + i * per_head + q_bytes
        _finish(step, first, first_head + i, rows, sums, sums + sums_bytes)
