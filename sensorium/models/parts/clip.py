"""CLIP vision tower: pictures of one fixed size, positions from a table, features taken between two layers.

B pictures · L patches and the class position · v width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.layers.block import EncoderBlock
from sensorium.layers.embedding import Embedding
from sensorium.models.parts.configs import ClipConfig
from sensorium.models.parts.vit import LAYER_RENAMES

RENAMES = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^patch$", "embeddings.patch_embedding.weight"),
    (r"^position\.", "embeddings.position_embedding."),
    (r"^norm\.", "pre_layrnorm."),
    *LAYER_RENAMES,
)


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
