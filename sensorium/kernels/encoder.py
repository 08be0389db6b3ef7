"""What encoders are made of besides products, for 16 bits on a GPU: attention inside segments, add and normalise.

N packed positions · H heads · D head dim · S segments or slices · W width · L patches · R queries of all heads
"""

from __future__ import annotations

import math
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

    @staticmethod
    def normalise_pixels(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """uint8 [..., W] -> (u / 255 - 0.5) / 0.5; zeros may follow in each row, up to what products like best."""
        return ((pixels.float() / 255 - 0.5) / 0.5).to(dtype)

    @staticmethod
    def grid_weights(
        scores: torch.Tensor,
        factors: torch.Tensor,
        by_row: torch.Tensor,
        by_column: torch.Tensor,
        sizes: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Attention to the patches of grids: scores float32 [S, R, L] -> weights [S, R, L] of `dtype`.

        A patch's score is multiplied by its factor [S, L], then what its row and its column score, each [R, P], is
        added; its weight of the softmax to base 2 is multiplied by the factor again. sizes [S, 2]: rows and columns.
        """
        index = torch.arange(scores.shape[-1], device=scores.device)
        rows, columns = sizes[:, :1], sizes[:, 1:]
        seen = index < rows * columns
        at_row, at_column = index // columns * seen, index % columns * seen
        scores = scores * factors[:, None] + by_row[:, at_row].transpose(0, 1) + by_column[:, at_column].transpose(0, 1)
        scores = scores.masked_fill(~seen[:, None], -torch.inf) * math.log(2)
        return (scores.softmax(-1) * factors[:, None]).to(dtype)
