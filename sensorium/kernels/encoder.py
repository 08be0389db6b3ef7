"""What encoders are made of besides products, for 16 bits on a GPU: attention inside segments, add and normalise.

N packed positions · H heads · D head dim · S segments · W width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch


class LayerNorm(Protocol):
    """The part of a LayerNorm that kernels read."""

    @property
    def weight(self) -> torch.Tensor: ...
    @property
    def bias(self) -> torch.Tensor: ...
    @property
    def eps(self) -> float: ...
    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Segments:
    """Attention inside each segment of the flattened batch: bounds int32 [S + 1], starting with 0.

    chunk: a segment is cut into chunks of so many positions, and a position sees to the end of its own; 0: all of it.
    """

    bounds: torch.Tensor
    longest: int
    chunk: int = 0


class EncoderOps:
    """The library's kernels."""

    chunks = False
    """Whether attend takes segments in chunks."""

    @staticmethod
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments) -> torch.Tensor:
        """q, k, v [N, H, D] -> [N, H, D]."""
        # The op under torch.nn.attention.varlen, whose import takes a second and loads the compiler.
        attend: Any = torch.ops.aten._flash_attention_forward
        bounds, longest = segments.bounds, segments.longest
        return attend(
            q, k, v, bounds, bounds, longest, longest, dropout_p=0.0, is_causal=False, return_debug_mask=False
        )[0]

    @staticmethod
    def add_norm(x: torch.Tensor, y: torch.Tensor | None, norm: LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """x + y and its normalisation, each [..., W]; x may be overwritten where there is a y."""
        x = x if y is None else x + y
        return x, norm(x)
