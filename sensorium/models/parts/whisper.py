"""Whisper encoder with chunked attention, for whole clips and for live sound, and the projector behind it.

B clips · T mel frames (100 per second) · C encoder frames (50 per second) · d width
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def stream(
        self, mel: torch.Tensor, streams: Sequence[AudioStream], before: int = 0, after: int = 0
    ) -> torch.Tensor:
        """The next frames of several streams: mel [B, 80, T] -> [B, C, d], each seeing all since its last restart.

        before, after: mel frames of context at the ends of `mel` that belong to the neighbouring chunks. Streams go on
        only if nothing fails.
        """
        x = self._convolve(mel, None)
        # A frame at the edge of the convolution stands for its context: at most one such frame is cut per side.
        x = x[:, min(before, 1) : x.shape[1] - min(after, 1)]
        length = x.shape[1]
        pasts = [s.past if s.num_frames + length < self.max_frames else [] for s in streams]
        starts = [past[0][0].shape[2] if past else 0 for past in pasts]
        x = x + torch.stack([self.position.weight[start : start + length] for start in starts])
        longest, mask = max(starts), None
        if min(starts) < longest:
            ends = torch.tensor(starts, device=x.device)[:, None]
            index = torch.arange(longest + length, device=x.device)
            mask = ((index < ends) | (index >= longest))[:, None, None]
        new: list[list[list[torch.Tensor]]] = [[] for _ in streams]
        for number, layer in enumerate(self.layers):
            both = [past[number] if past else [] for past in pasts]
            joined = _padded(both, longest)
            x = layer(x, mask, joined)
            for row, (own, kept) in enumerate(zip(both, new, strict=True)):
                added = [part[row : row + 1, :, longest:] for part in joined]
                kept.append([torch.cat(pair, 2) for pair in zip(own, added, strict=True)] if own else added)
        for stream, kept, start in zip(streams, new, starts, strict=True):
            stream.past, stream.num_frames = kept, start + length
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


def _padded(pasts: Sequence[list[torch.Tensor]], longest: int) -> list[torch.Tensor]:
    """Keys and values [1, H, P, D] of each stream -> two [B, H, longest, D], zeros behind those that are shorter."""
    if not longest:
        return []
    first = next(past for past in pasts if past)[0]
    out = [first.new_zeros(len(pasts), first.shape[1], longest, first.shape[3]) for _ in range(2)]
    for row, past in enumerate(pasts):
        for whole, part in zip(out, past, strict=False):
            whole[row, :, : part.shape[2]] = part[0]
    return out


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
