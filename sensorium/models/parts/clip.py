"""CLIP vision tower: pictures of one fixed size, positions from a table, features taken between two layers.

B pictures · L patches and the class position · v width
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.errors import CheckpointError
from sensorium.layers.block import EncoderBlock
from sensorium.layers.embedding import Embedding
from sensorium.layers.mlp import Gelu
from sensorium.models.parts.vit import LAYER_RENAMES, read_fields

RENAMES = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^patch$", "embeddings.patch_embedding.weight"),
    (r"^position\.", "embeddings.position_embedding."),
    (r"^norm\.", "pre_layrnorm."),
    *LAYER_RENAMES,
)
GELUS: dict[str, Gelu] = {"quick_gelu": "quick", "gelu": "none", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """Defaults are those that published configurations leave out."""

    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate: int = 3072
    patch_size: int = 32
    image_size: int = 224
    norm_eps: float = 1e-5
    gelu: Gelu = "quick"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ClipConfig:
        gelu = config.get("hidden_act", "quick_gelu")
        if gelu not in GELUS:
            raise CheckpointError(f"vision_config: hidden_act {gelu!r} is not supported; known: {', '.join(GELUS)}")
        return cls(gelu=GELUS[gelu], **read_fields(config))

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def depth(self, layer: int) -> int:
        """How many layers lie below feature layer `layer`: 0 is the embeddings; negative numbers count from the top."""
        depth = layer + self.num_layers + 1 if layer < 0 else layer
        if not 0 <= depth <= self.num_layers:
            raise CheckpointError(f"vision_feature_layer {layer} does not exist; there are {self.num_layers} layers")
        return depth


class Clip(nn.Module):
    """Computes as many layers as the deepest of `depths` needs."""

    def __init__(self, config: ClipConfig, depths: tuple[int, ...]) -> None:
        super().__init__()
        c = config
        self.depths = depths
        self.patch_size = c.patch_size
        self.class_embedding = nn.Parameter(torch.empty(c.width), requires_grad=False)
        self.patch = nn.Parameter(torch.empty(c.width, 3, c.patch_size, c.patch_size), requires_grad=False)
        self.position = Embedding(c.num_patches + 1, c.width)
        self.norm = nn.LayerNorm(c.width, c.norm_eps)
        self.layers = nn.ModuleList(
            EncoderBlock(c.width, c.num_heads, c.intermediate, eps=c.norm_eps, gelu=c.gelu) for _ in range(max(depths))
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """pixels [B, 3, side, side], normalised -> [B, L, v * depths], the class position first."""
        patches = F.conv2d(pixels, self.patch, stride=self.patch_size).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        states = [self.norm(torch.cat((first, patches), 1) + self.position.weight)]
        for layer in self.layers:
            states.append(layer(states[-1], None))
        return torch.cat([states[depth] for depth in self.depths], -1)
