"""Matrix products on the CPU through oneDNN with prepacked weights.

torch's own float32 product is MKL, which on many CPUs reaches half of what oneDNN does from a few rows up (measured in
docs/performance.md). The ops are those torch's inductor emits; where a build lacks them, `supports` says so.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F

# Every shape ever computed leaves half a megabyte of compiled code in a cache. Products have few shapes, see `linear`;
# the convolutions of a sound tower have one for each length.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

# Rows from which the packed product wins; a single row is a matrix-vector product, where MKL is faster.
MIN_ROWS = 4
_PIECE = 256
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
    """x [..., n_in] -> [..., n_out].

    oneDNN compiles a kernel for every number of rows, half a megabyte each, and frees part of it never, whatever its
    cache's capacity. So it is given pieces of 256 rows, and what is left padded to one of 13 sizes.
    """
    rows = x.reshape(-1, x.shape[-1])
    parts = [_product(_padded(piece), packed, bias)[: len(piece)] for piece in rows.split(_PIECE)]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.view(*x.shape[:-1], -1)


def _product(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _padded(x: torch.Tensor) -> torch.Tensor:
    """x [N, n_in] with rows of zeros up to a multiple of 4; above 16 rows of 16, above 64 of 32."""
    missing = -len(x) % (4 if len(x) <= 16 else 16 if len(x) <= 64 else 32)
    return F.pad(x, (0, 0, 0, missing)) if missing else x
