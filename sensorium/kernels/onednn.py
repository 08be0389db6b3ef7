"""Matrix products on the CPU through oneDNN with prepacked weights.

torch's own float32 product is MKL, which on many CPUs reaches half of what oneDNN does from a few rows up (measured in
docs/performance.md). The ops are those torch's inductor emits; where a build lacks them, `supports` says so.
"""

from __future__ import annotations

import os

import torch

# Every shape ever multiplied leaves a compiled kernel in a cache; the default of 1024 holds some 100 MB of them.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

# Rows from which the packed product wins; a single row is a matrix-vector product, where MKL is faster.
MIN_ROWS = 4
# The weight layout is chosen for about this many rows: the width of a decode batch.
_PACK_ROWS = 16


def supports(weight: torch.Tensor) -> bool:
    """Whether this weight can be packed: float32 on a CPU whose torch has oneDNN."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack(weight: torch.Tensor) -> torch.Tensor:
    """weight [n_out, n_in] -> an opaque copy in oneDNN's layout."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)


def linear(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., n_in] -> [..., n_out]."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
