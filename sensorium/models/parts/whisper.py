"""Whisper encoder with chunked attention, for whole clips and for live sound, and the projector behind it.

B clips · T mel frames (100 per second) · C encoder frames (50 per second) · d width
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sensorium.layers.attention import Past, key_padding
from sensorium.layers.block import EncoderBlock, run_blocks
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
    """One live stream: its slot in the memory, and how many frames since its last restart are there."""

    slot: int
    num_frames: int = 0


class StreamMemory:
    """Keys and values of live streams: a slot of fixed size for each, and one more, which padding of batches writes to.

    layers: per layer [slots + 1, frames, 2, H, D].
    """

    def __init__(self, whisper: Whisper) -> None:
        weight, heads = whisper.position.weight, whisper.num_heads
        # Attention kernels want numbers of keys that are multiples of 8.
        self.frames = -(-whisper.max_frames // 8) * 8
        self._row, self._num_layers = (heads, weight.shape[1] // heads), len(whisper.layers)
        self._device, self._dtype = weight.device, weight.dtype
        self._free: list[int] = []
        self.layers: list[torch.Tensor] = []
        self.num_slots = 0

    @property
    def slot_bytes(self) -> int:
        return 2 * self._num_layers * self.frames * self._row[0] * self._row[1] * self._dtype.itemsize

    def reserve(self, slots: int) -> None:
        """Make room for so many streams in all. Those that are there stay."""
        old, kept = self.layers, self.num_slots
        self.layers = [self._zeros((slots + 1, self.frames, 2, *self._row)) for _ in range(self._num_layers)]
        for layer, before in zip(self.layers, old, strict=False):
            layer[:kept] = before[:kept]
        self._free = [*reversed(range(self.num_slots, slots)), *self._free]
        self.num_slots = slots

    def open(self) -> AudioStream:
        """A new stream, where there is a slot for it."""
        if not self._free:
            self.reserve(max(2 * self.num_slots, 4))
        return AudioStream(self._free.pop())

    def close(self, stream: AudioStream) -> None:
        self._free.append(stream.slot)

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self._device.type == "cuda":
            return torch.zeros(shape, dtype=self._dtype, device=self._device)
        # Pages that nobody writes to take no memory.
        return (
            torch.from_numpy(np.zeros(math.prod(shape) * self._dtype.itemsize, np.uint8)).view(self._dtype).view(shape)
        )


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
        self.num_heads = c.num_heads
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
        mask = key_padding((frames - 1) // 2 + 1, x, padded=padded, chunk=self.chunk)
        return run_blocks(self.layers, self.norm, x, mask)

    def stream(
        self,
        mel: torch.Tensor,
        memory: Sequence[torch.Tensor],
        slots: torch.Tensor,
        starts: torch.Tensor,
        num_keys: int,
        before: int = 0,
        after: int = 0,
    ) -> torch.Tensor:
        """The next frames of several streams: mel [B, 80, T] -> [B, C, d], each seeing all since its last restart.

        memory: layers of StreamMemory, which are written to. slots, starts int64 [B]: where each stream's frames are,
        and how many of them. num_keys: at least what the longest has afterwards. before, after: mel frames of context
        at the ends of `mel` that belong to the neighbouring chunks.
        """
        x = self._convolve(mel, None)
        # A frame at the edge of the convolution stands for its context: at most one such frame is cut per side.
        x = x[:, min(before, 1) : x.shape[1] - min(after, 1)]
        at = starts[:, None] + torch.arange(x.shape[1], device=x.device)
        x = x + self.position.weight[at]
        past = Past.of(slots, at, num_keys, memory[0].shape[1])
        for layer, kv in zip(self.layers, memory, strict=True):
            x = layer(x, past, kv)
        return self.norm(x)

    def _convolve(self, mel: torch.Tensor, frames: torch.Tensor | None) -> torch.Tensor:
        x = F.gelu(self.conv1(mel))
        if frames is not None:
            # A clip alone ends in zeros here; what the first convolution smears into the padding must not come back.
            x = x * (torch.arange(mel.shape[2], device=mel.device) < frames[:, None])[:, None]
        # In the layout of all that follows: what stays transposed is copied again in every layer.
        return F.gelu(self.conv2(x)).transpose(1, 2).contiguous()


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
