"""Rotary positions: every published scaling rule as data, one rotation for all.

N tokens · A position axes (1, or 3 for M-RoPE) · D head dim
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from sensorium.errors import CheckpointError
from sensorium.kernels.reference import rope
from sensorium.layers.rope_config import RopeConfig


def _linear(inv: torch.Tensor, rope: RopeConfig) -> tuple[torch.Tensor, float]:
    return inv / rope.scaling["factor"], 1.0


def _llama3(inv: torch.Tensor, rope: RopeConfig) -> tuple[torch.Tensor, float]:
    """Long wavelengths are slowed by `factor`, short ones kept, with a linear blend between the two limits."""
    s = rope.scaling
    low, high, factor = s["low_freq_factor"], s["high_freq_factor"], s["factor"]
    turns = s["original_max_position_embeddings"] * inv / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return inv / factor * (1 - smooth) + inv * smooth, 1.0


def _yarn(inv: torch.Tensor, rope: RopeConfig) -> tuple[torch.Tensor, float]:
    s = rope.scaling
    original = s.get("original_max_position_embeddings") or rope.max_len
    factor = s.get("factor") or rope.max_len / original

    def channel(turns: float) -> float:
        return rope.head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = channel(s.get("beta_fast") or 32), channel(s.get("beta_slow") or 1)
    if s.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.head_dim - 1)
    ramp = (torch.arange(len(inv), dtype=torch.float32, device="cpu") - low) / max(high - low, 0.001)
    keep = 1 - ramp.clamp(0, 1)
    attention = s.get("attention_factor") or _yarn_attention(s, factor)
    return inv / factor * (1 - keep) + inv * keep, attention


def _yarn_attention(scaling: Mapping[str, Any], factor: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return mscale(scaling["mscale"]) / mscale(scaling["mscale_all_dim"])
    return mscale(1.0)


def _longrope(inv: torch.Tensor, rope: RopeConfig) -> tuple[torch.Tensor, float]:
    """Per-channel factors. One of the two sets is chosen for good by the longest length served, as cached keys keep
    the rotation they were written with."""
    s = rope.scaling
    original = s.get("original_max_position_embeddings") or rope.max_len
    scale = s.get("factor") or rope.max_len / original
    factors = s["long_factor"] if rope.max_len > original else s["short_factor"]
    attention = s.get("attention_factor")
    if attention is None:
        attention = 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original))
    return inv / torch.tensor(factors, dtype=torch.float32, device="cpu"), attention


SCALINGS = {
    "default": lambda inv, rope: (inv, 1.0),
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def frequencies(rope: RopeConfig) -> tuple[torch.Tensor, float]:
    """Angle per position of each channel pair, float32 [D/2], and the factor on cos and sin."""
    if rope.kind not in SCALINGS:
        raise CheckpointError(f"rope type {rope.kind!r} is not supported; known: {', '.join(SCALINGS)}")
    steps = torch.arange(0, rope.head_dim, 2, dtype=torch.float32, device="cpu")
    return SCALINGS[rope.kind](1.0 / rope.theta ** (steps / rope.head_dim), rope)


class Rope(nn.Module):
    """Positions to the (cos, sin) that kernels' rope reads, once per step for all layers."""

    inv_freq: torch.Tensor
    axis: torch.Tensor | None

    def __init__(self, config: RopeConfig) -> None:
        super().__init__()
        inv_freq, self.attention_factor = frequencies(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("axis", _axis_of_channel(config) if config.sections else None, persistent=False)

    def forward(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [N] or [A, N] -> cos, sin [N, 1, D]; the first half of sin is negated (see kernels' rope)."""
        if self.axis is not None and positions.dim() == 2:
            angles = positions.index_select(0, self.axis).T * self.inv_freq
        else:
            angles = (positions if positions.dim() == 1 else positions[0])[:, None] * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        return torch.cat((cos, cos), -1).to(dtype)[:, None], torch.cat((-sin, sin), -1).to(dtype)[:, None]

    def turn(self, before: torch.Tensor, after: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """A function that takes keys [n, K, D] rotated for positions before [n] to positions after [n].

        All axes of a key must move by the same distance. The angles are the float32 ones that `forward` rotates by, so
        that what was rotated by one is rotated by the other, and not by something near.
        """
        angles = (after[:, None] * self.inv_freq).double() - (before[:, None] * self.inv_freq).double()
        cos, sin = angles.cos().float(), angles.sin().float()
        cos, sin = torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]
        return lambda keys: rope(keys.float(), cos, sin).to(keys.dtype)


def _axis_of_channel(config: RopeConfig) -> torch.Tensor:
    """Which position axis turns channel pair j, int64 [D/2]."""
    half = config.head_dim // 2
    if config.interleaved:
        axes = [next((a for a in (1, 2) if j % 3 == a and j < 3 * config.sections[a]), 0) for j in range(half)]
    else:
        axes = [axis for axis, size in enumerate(config.sections) for _ in range(size)]
    return torch.tensor(axes, dtype=torch.int64, device="cpu")
