"""Whisper encoder with chunked attention, for whole clips and for live sound, and the projector behind it.

B clips · T mel frames (100 per second) · C encoder frames (50 per second) · d width
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.layers.attention import key_padding
from sensorium.layers.block import EncoderBlock
from sensorium.layers.embedding import Embedding
from sensorium.layers.linear import Linear
from sensorium.models.parts.configs import WhisperConfig

FRAMES_PER_S = 50

RENAMES = (
    (r"^position\.", "embed_positions."),
    (r"^norm\.", "layer_norm."),
    (r"\.norm1\.", ".self_attn_layer_norm."),
    (r"\.norm2\.", ".final_layer_norm."),
    (r"\.mlp\.", "."),
    (r"\.attention\.qkv\.", ".self_attn.{piece}_proj."),
    (r"\.attention\.out\.", ".self_attn.out_proj."),
)


@dataclass(slots=True)
class AudioStream:
    """What one live stream keeps in the encoder: the keys and values of the frames seen since the last restart."""

    past: list[list[torch.Tensor]] = field(default_factory=list)
    num_frames: int = 0


def encoder_frames(mel_frames: int) -> int:
    """Frames after the stride-2 convolution."""
    return (mel_frames - 1) // 2 + 1


class Whisper(nn.Module):
    """chunk_s: seconds per attention chunk; a frame sees its own chunk and all before. 0: the whole clip."""

    def __init__(self, config: WhisperConfig, chunk_s: float = 0.0) -> None:
        super().__init__()
        c = config
        self.chunk = int(chunk_s * FRAMES_PER_S)
        self.max_frames = c.max_frames
        self.conv1 = nn.Conv1d(c.num_mels, c.width, 3, padding=1)
        self.conv2 = nn.Conv1d(c.width, c.width, 3, stride=2, padding=1)
        self.position = Embedding(c.max_frames, c.width)
        # k has no bias in Whisper: adding one would shift all scores of a query equally.
        self.layers = nn.ModuleList(
            EncoderBlock(c.width, c.num_heads, c.intermediate, eps=c.norm_eps, gelu="none", bias=("q", "v"))
            for _ in range(c.num_layers)
        )
        self.norm = nn.LayerNorm(c.width, c.norm_eps)

    def forward(self, mel: torch.Tensor, frames: torch.Tensor, padded: bool = True) -> torch.Tensor:
        """mel [B, 80, T], frames [B] valid mel frames -> [B, C, d]. padded=False promises that every clip fills T."""
        x = self._convolve(mel, frames if padded else None)
        length = x.shape[1]
        x = x + self.position.weight[:length]
        num = (frames - 1) // 2 + 1
        if 0 < self.chunk < length:
            mask = self._chunk_mask(num, length)
        else:
            mask = key_padding(num, x) if padded else None
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)

    def stream(self, mel: torch.Tensor, stream: AudioStream, before: int = 0, after: int = 0) -> torch.Tensor:
        """The next frames of one stream: mel [1, 80, T] -> [1, C, d], seeing everything since the last restart.

        before, after: mel frames of context at the ends of `mel` that belong to the neighbouring chunks.
        """
        x = self._convolve(mel, None)
        # A frame at the edge of the convolution stands for its context: at most one such frame is cut per side.
        x = x[:, min(before, 1) : x.shape[1] - min(after, 1)]
        if stream.num_frames + x.shape[1] >= self.max_frames:
            stream.past, stream.num_frames = [], 0
        if not stream.past:
            stream.past = [[] for _ in self.layers]
        start = stream.num_frames
        x = x + self.position.weight[start : start + x.shape[1]]
        for layer, past in zip(self.layers, stream.past, strict=True):
            x = layer(x, None, past)
        stream.num_frames += x.shape[1]
        return self.norm(x)

    def _convolve(self, mel: torch.Tensor, frames: torch.Tensor | None) -> torch.Tensor:
        x = F.gelu(self.conv1(mel))
        if frames is not None:
            # A clip alone ends in zeros here; what the first convolution smears into the padding must not come back.
            x = x * (torch.arange(mel.shape[2], device=mel.device) < frames[:, None])[:, None]
        return F.gelu(self.conv2(x)).transpose(1, 2)

    def _chunk_mask(self, num_frames: torch.Tensor, length: int) -> torch.Tensor:
        """num_frames [B] -> bool [B, 1, C, C], True where key j is seen by frame i."""
        index = torch.arange(length, device=num_frames.device)
        ends = (index // self.chunk + 1) * self.chunk
        return ((index < num_frames[:, None])[:, None] & (index < ends[:, None]))[:, None]


class AudioProjector(nn.Module):
    """Two linear layers and an average over `pool` encoder frames."""

    def __init__(self, n_in: int, n_out: int, pool: int) -> None:
        super().__init__()
        self.pool = pool
        self.linear1 = Linear(n_in, n_out, bias=True)
        self.linear2 = Linear(n_out, n_out, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, d] -> [B, C // pool, E]."""
        x = F.relu(self.linear1(x))
        rows = x.shape[1] // self.pool
        # The average commutes with the second layer, which then runs on `pool` times fewer rows.
        return self.linear2(x[:, : rows * self.pool].unflatten(1, (rows, self.pool)).mean(2))
