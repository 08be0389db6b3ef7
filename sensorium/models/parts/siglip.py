"""SigLIP vision tower over images of any shape: patches of a padded batch, positions from fractional coordinates.

S slices · L patches of the longest slice · v width
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels import select
from sensorium.layers.attention import key_padding
from sensorium.layers.block import EncoderBlock, run_blocks
from sensorium.layers.embedding import Embedding
from sensorium.models.parts.configs import SiglipConfig
from sensorium.models.parts.vit import LAYER_RENAMES

RENAMES = (
    (r"^patch\.", "embeddings.patch_embedding."),
    (r"^position\.", "embeddings.position_embedding."),
    (r"^norm\.", "post_layernorm."),
    *LAYER_RENAMES,
)


def patch_inputs(patches: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 pixels [..., 588] -> (u / 255 - 0.5) / 0.5; on a GPU in 16 bits with zeros behind each row."""
    return select.encoder_ops_for(patches.device, dtype).normalise_pixels(patches, dtype)


def patch_mask(sizes: torch.Tensor, length: int) -> torch.Tensor:
    """sizes [S, 2] -> bool [S, L], True at real patches."""
    return torch.arange(length, device=sizes.device) < sizes.prod(-1, keepdim=True)


def patch_grid(sizes: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """sizes [S, 2] (rows, cols) -> row and column of every patch, each [S, L]; 0 at padding."""
    index = torch.arange(length, device=sizes.device)
    rows, cols = sizes[:, :1], sizes[:, 1:]
    valid = index < rows * cols
    return (index // cols) * valid, (index % cols) * valid


class Siglip(nn.Module):
    boundaries: torch.Tensor

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        c = config
        self.side = c.side
        self.patch = PatchEmbedding(c.width, c.patch_size)
        self.position = Embedding(c.side * c.side, c.width)
        self.layers = nn.ModuleList(
            EncoderBlock(c.width, c.num_heads, c.intermediate, eps=c.norm_eps, gelu="tanh") for _ in range(c.num_layers)
        )
        self.norm = nn.LayerNorm(c.width, c.norm_eps)
        boundaries = torch.arange(1 / c.side, 1.0, 1 / c.side, dtype=torch.float32, device="cpu")
        self.register_buffer("boundaries", boundaries, persistent=False)

    def forward(self, patches: torch.Tensor, sizes: torch.Tensor, padded: bool = True) -> torch.Tensor:
        """patches [S, L, 588] as patch_inputs makes them, sizes [S, 2] -> [S, L, v].

        padded=False promises that every slice fills L.
        """
        length = patches.shape[1]
        x = self.patch(patches) + self.position(self.position_ids(sizes, length))
        return run_blocks(self.layers, self.norm, x, key_padding(sizes.prod(-1), x, padded=padded))

    def position_ids(self, sizes: torch.Tensor, length: int) -> torch.Tensor:
        """Bucket of each patch's fractional coordinate on both axes: int64 [S, L], 0 at padding."""
        row, col = (
            torch.bucketize(_fraction(index, count), self.boundaries, right=True)
            for index, count in zip(patch_grid(sizes, length), sizes.unsqueeze(1).unbind(-1), strict=True)
        )
        return row * self.side + col


def _fraction(index: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """index / count as torch.arange(0, 1, 1 / count) rounds it on a CPU: a float32 step; every eighth value rounded to
    float32; the seven after it reached from there in double precision and rounded again.

    The model was trained with these very values, and where a coordinate meets a bucket's border the rounding decides.
    """
    step = (1.0 / count.float()).double()
    eighth = index // 8 * 8
    return ((eighth * step).float() + (index - eighth) * step).float()


class PatchEmbedding(nn.Module):
    """The stride-14 convolution of the checkpoint, as a linear map of one flattened patch (channel, row, column)."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, patch_size, patch_size), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(width), requires_grad=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        weight = self.weight.flatten(1)
        # Zeros that patch_inputs puts behind a patch.
        weight = F.pad(weight, (0, more)) if (more := patches.shape[-1] - weight.shape[1]) else weight
        return F.linear(patches, weight, self.bias)
