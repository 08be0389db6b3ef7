"""Vision tower of Qwen2-VL and Qwen2.5-VL: pictures of any size, packed without padding.

A slab is one picture, or one temporal slice of a video: attention never leaves it. Its patches come in square blocks of
merge x merge, row after row of blocks, so that the merger joins neighbours.
P patches of all slabs · W width · D head dim · S segments · L patches of a segment
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels import reference as ops
from sensorium.layers.linear import Linear
from sensorium.layers.mlp import GatedMlp, Mlp
from sensorium.layers.norm import RMSNorm
from sensorium.models.parts.configs import QwenVisionConfig

RENAMES = (
    (r"^patch$", "patch_embed.proj.weight"),
    (r"^layers\.", "blocks."),
    (r"\.attention\.qkv\.", ".attn.qkv."),
    (r"\.attention\.out\.", ".attn.proj."),
    (r"\.mlp\.gate_up\.", ".mlp.{piece}_proj."),
    (r"\.mlp\.down\.", ".mlp.down_proj."),
    (r"^merger\.norm\.", "merger.ln_q."),
    (r"^merger\.mlp\.fc1\.", "merger.mlp.0."),
    (r"^merger\.mlp\.fc2\.", "merger.mlp.2."),
)
NORM_EPS = 1e-6
ROPE_THETA = 10000.0
Size = tuple[int, int]
"""Rows and columns of patches."""


class QwenVision(nn.Module):
    inv_freq: torch.Tensor

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        c = self.config = config
        self.patch = nn.Parameter(torch.empty(c.width, 3, c.temporal, c.patch_size, c.patch_size), requires_grad=False)
        self.layers = nn.ModuleList(VisionBlock(c) for _ in range(c.num_layers))
        self.merger = Merger(c)
        quarter = c.width // c.num_heads // 4
        steps = torch.arange(quarter, dtype=torch.float32, device="cpu") / quarter
        self.register_buffer("inv_freq", 1.0 / ROPE_THETA**steps, persistent=False)

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised frames [1 or T, H, W, 3] of one slab -> [patches, 3 * T * side * side]. One frame stands still."""
        c = self.config
        side, merge = c.patch_size, c.merge
        frames = pixels.expand(c.temporal, -1, -1, -1)
        cut = frames.unflatten(2, (-1, merge, side)).unflatten(1, (-1, merge, side))
        return cut.permute(1, 4, 2, 5, 7, 0, 3, 6).reshape(-1, 3 * c.temporal * side * side)

    def forward(self, patches: torch.Tensor, sizes: Sequence[Size]) -> torch.Tensor:
        """patches [P, 3 * T * side * side] of slabs of the given sizes -> [P / merge², n_out]."""
        c = self.config
        x = F.linear(patches, self.patch.flatten(1))
        cos, sin = self._rotation(sizes)
        whole = _groups(sizes, _whole, x.device)
        windows = whole
        if c.window:
            windows = _groups(sizes, lambda rows, columns: _windows(rows, columns, c.merge, c.window), x.device)
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, whole if index in c.full_layers else windows)
        return self.merger(x)

    def _rotation(self, sizes: Sequence[Size]) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [P, 1, D], float32: the first half of the channel pairs turns with the row, the second with the
        column; the first half of sin is negated (see kernels' rope)."""
        places = np.concatenate([_places(rows, columns, self.config.merge) for rows, columns in sizes])
        angles = (torch.from_numpy(places).to(self.inv_freq.device)[..., None] * self.inv_freq).flatten(1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]


class VisionBlock(nn.Module):
    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        c = config
        self.norm1 = _norm(c)
        self.attention = SegmentAttention(c.width, c.num_heads)
        self.norm2 = _norm(c)
        self.mlp = GatedMlp(c.width, c.intermediate, bias=True) if c.gated else Mlp(c.width, c.intermediate, "quick")

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, groups: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), cos, sin, groups)
        return x + self.mlp(self.norm2(x))


class SegmentAttention(nn.Module):
    """Attention inside segments of packed rows. Segments of equal length make one call: nothing is padded or masked."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width, bias=True)
        self.out = Linear(width, width, bias=True)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, groups: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """x [P, W]; cos, sin [P, 1, D]; groups: per length, which rows make each segment, int64 [S, L]."""
        qk, v = self.qkv(x).unflatten(-1, (3 * self.num_heads, -1)).split((2 * self.num_heads, self.num_heads), 1)
        q, k = ops.rope(qk.float(), cos, sin).to(x.dtype).chunk(2, 1)
        out = v.new_empty(v.shape)
        for rows in groups:
            queries, keys, values = (part[rows].transpose(1, 2) for part in (q, k, v))
            out[rows] = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)
        return self.out(out.flatten(1))


class Merger(nn.Module):
    """Every block of merge x merge patches becomes one row of the language model's width."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        self.norm = _norm(config)
        self.width = config.width * config.merge**2
        self.mlp = Mlp(self.width, self.width, "none", config.n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.norm(x).view(-1, self.width))


def _norm(config: QwenVisionConfig) -> nn.Module:
    return RMSNorm(config.width, NORM_EPS) if config.gated else nn.LayerNorm(config.width, NORM_EPS)


# ---- which patch is where -----------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _places(rows: int, columns: int, merge: int) -> np.ndarray:
    """Row and column of every patch of a slab, int64 [patches, 2]."""
    grid = np.indices((rows, columns)).transpose(1, 2, 0)
    return grid.reshape(rows // merge, merge, columns // merge, merge, 2).transpose(0, 2, 1, 3, 4).reshape(-1, 2)


def _whole(rows: int, columns: int) -> list[np.ndarray]:
    return [np.arange(rows * columns)]


@lru_cache(maxsize=64)
def _windows(rows: int, columns: int, merge: int, window: int) -> list[np.ndarray]:
    """Patches of each window of a slab; windows at the right and lower edge are smaller."""
    cells = np.arange(rows * columns).reshape(rows // merge, columns // merge, merge * merge)
    return [
        cells[top : top + window, left : left + window].reshape(-1)
        for top in range(0, rows // merge, window)
        for left in range(0, columns // merge, window)
    ]


def _groups(
    sizes: Sequence[Size], segments: Callable[[int, int], list[np.ndarray]], device: torch.device
) -> list[torch.Tensor]:
    """Segments of all slabs by their length: int64 [S, L] each."""
    by_length: dict[int, list[np.ndarray]] = defaultdict(list)
    start = 0
    for rows, columns in sizes:
        for segment in segments(rows, columns):
            by_length[len(segment)].append(segment + start)
        start += rows * columns
    return [torch.from_numpy(np.stack(group)).to(device) for group in by_length.values()]
