"""What a checkpoint says about its rotary positions. No torch: processors read it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """`scaling` is the checkpoint's own dict (rope_scaling or rope_parameters); max_len what will be served."""

    head_dim: int
    theta: float
    scaling: Mapping[str, Any]
    max_len: int
    sections: tuple[int, ...] = ()
    """Channels (of D/2) that follow each axis, for M-RoPE."""
    interleaved: bool = False
    """Axes alternate channel by channel instead of in contiguous sections (Qwen3-VL)."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], head_dim: int) -> RopeConfig:
        scaling = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        theta = float(scaling.get("rope_theta", config.get("rope_theta", 10000.0)))
        max_len = int(config.get("max_position_embeddings", 32768))
        return cls(
            head_dim,
            theta,
            scaling,
            max_len,
            tuple(scaling.get("mrope_section") or ()),
            bool(scaling.get("mrope_interleaved", False)),
        )

    @property
    def kind(self) -> str:
        kind = self.scaling.get("rope_type") or self.scaling.get("type") or "default"
        return {"su": "longrope", "mrope": "default"}.get(kind, kind)
