"""What one call of the compiled kernels reads: sizes and addresses, as records that numpy writes and LLVM reads.

N packed tokens · E width · H query heads · K key/value heads · D head dim · I intermediate width. Buffers are dense
float32 unless said otherwise; an address of 0 means "none".
"""

from __future__ import annotations

import numpy as np

# What every call needs: how to share its work between threads, and what weights are.
_SHARED = (
    ("entered", "i8"),  # how many threads have come in
    ("counters", "i8"),  # int64 [stages, 8]: tiles claimed, tiles done, unused
    ("scratch", "i8"),
    ("scratch_bytes", "i8"),  # of one thread
    ("give_way", "i8"),  # C function that lets another thread have the core
    ("half", "i8"),  # 1 where matrices are kept as bfloat16
)

PRODUCT = np.dtype(
    [
        *_SHARED,
        ("rows", "i8"),
        ("n_in", "i8"),
        ("n_out", "i8"),
        ("x", "i8"),  # [rows, n_in]
        ("weight", "i8"),  # in panels
        ("bias", "i8"),
        ("out", "i8"),  # [rows, n_out]
    ]
)

STEP = np.dtype(
    [
        *_SHARED,
        ("rows", "i8"),  # N
        ("width", "i8"),
        ("heads", "i8"),
        ("kv_heads", "i8"),
        ("head_dim", "i8"),
        ("intermediate", "i8"),
        ("num_layers", "i8"),
        ("block_size", "i8"),
        ("table_width", "i8"),
        ("num_units", "i8"),
        ("eps", "f4"),
        ("scale", "f4"),
        ("layers", "i8"),  # LAYER [num_layers]
        ("x", "i8"),  # [N, E]: embeddings; overwritten
        ("cos", "i8"),  # [N, D]
        ("sin", "i8"),  # [N, D], the first half negated
        ("slots", "i8"),  # int64 [N]
        ("units", "i8"),  # int64 [num_units, 4]: first row, rows, position of the first, sequence
        ("tables", "i8"),  # int64 [sequences, table_width]
        ("normed", "i8"),  # [N, E]
        ("qkv", "i8"),  # [N, (H + 2 K) D]
        ("mixed", "i8"),  # [N, H D]
        ("gated", "i8"),  # [N, I]
        ("final_norm", "i8"),  # [E]
        ("num_kept", "i8"),  # M
        ("kept", "i8"),  # int64 [M], ascending: rows that go through the end of the last layer; none if M is N
        ("out", "i8"),  # [M, E]
    ]
)

LAYER = np.dtype(
    [
        ("norm1", "i8"),
        ("qkv", "i8"),
        ("qkv_bias", "i8"),
        ("q_norm", "i8"),
        ("k_norm", "i8"),
        ("out", "i8"),
        ("norm2", "i8"),
        ("gate_up", "i8"),
        ("down", "i8"),
        ("keys", "i8"),
        ("values", "i8"),
    ]
)

# Rows that one tile of a matrix product covers: its part of x stays in a core's own cache.
TILE_ROWS = 64
