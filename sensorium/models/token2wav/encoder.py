"""The conformer in front of flow matching: codes to a mel-like sequence mu, two frames a code.

B streams · k codes · T frames (two per code) · L keys seen · C width · H heads
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sensorium.models.token2wav.config import FRAMES_PER_CODE, LOOKAHEAD, MELS, FlowConfig
from sensorium.models.token2wav.rows import KeyView
from sensorium.models.token2wav.weights import Weights

CODE_PAST, FRAME_PAST = 2, 4
"""Columns that the convolutions of the look-ahead and of the up-sampling keep of the chunk before."""
_BLOCK_EPS = 1e-12


@dataclass(frozen=True, slots=True)
class EncoderPast:
    """What a chunk sees of those before: keys at the rate of codes and of frames, and columns [B, 2 + 4, C].

    heard int64 [B]: how many codes of each stream make sound; None: all that there is room for.
    """

    codes: KeyView
    frames: KeyView
    columns: torch.Tensor
    heard: torch.Tensor | None = None


class Encoder:
    """Source: UpsampleConformerEncoderV2 of CosyVoice 2, as minicpmo-utils configures it."""

    def __init__(self, w: Weights, c: FlowConfig) -> None:
        d = c.width
        self.width = d
        self._codes = w.take("input_embedding.weight", c.vocab, d)
        self._embed = _Embedding(w, "encoder.embed.out.", d)
        ahead = "encoder.pre_lookahead_layer."
        self._ahead = (w.take(f"{ahead}conv1.weight", d, d, LOOKAHEAD + 1), w.take(f"{ahead}conv1.bias", d))
        self._behind = (w.take(f"{ahead}conv2.weight", d, d, CODE_PAST + 1), w.take(f"{ahead}conv2.bias", d))
        self._blocks = [_Block(w, f"encoder.encoders.{i}.", c) for i in range(c.num_blocks)]
        self._up = (
            w.take("encoder.up_layer.conv.weight", d, d, FRAME_PAST + 1),
            w.take("encoder.up_layer.conv.bias", d),
        )
        self._up_embed = _Embedding(w, "encoder.up_embed.out.", d)
        self._up_blocks = [_Block(w, f"encoder.up_encoders.{i}.", c) for i in range(c.num_up_blocks)]
        self._norm = (w.take("encoder.after_norm.weight", d), w.take("encoder.after_norm.bias", d))
        self._out = (w.take("encoder_proj.weight", MELS, d), w.take("encoder_proj.bias", MELS))

    def __call__(
        self, codes: torch.Tensor, last: bool, past: EncoderPast | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """codes [B, k] to (mu [B, T, 80], columns for the next chunk [B, 6, C]).

        last: every code makes sound, T = 2k; else the last three are only looked at, T = 2(k - 3). Without a past the
        codes are the whole utterance so far. A code of -1 stands for what is behind the end of an utterance.
        """
        heard = past.heard if past is not None else None
        if heard is None:
            x = self._embed(self._codes[codes])
        else:
            x = self._embed(self._codes[codes.clamp(min=0)]).masked_fill((codes < 0)[..., None], 0.0)
        columns = past.columns if past is not None else x.new_zeros(len(x), CODE_PAST + FRAME_PAST, self.width)
        ahead = F.pad(x, (0, 0, 0, LOOKAHEAD)) if last else x
        ahead = F.leaky_relu(_convolve(ahead, self._ahead), 0.01)
        ahead = torch.cat((columns[:, :CODE_PAST], ahead), 1)
        x = x[:, : ahead.shape[1] - CODE_PAST] + _convolve(ahead, self._behind)
        x = _run(self._blocks, x, past and past.codes, self.width)
        x = torch.cat((columns[:, CODE_PAST:], x.repeat_interleave(FRAMES_PER_CODE, 1)), 1)
        if heard is None:
            columns = torch.cat((ahead[:, -CODE_PAST:], x[:, -FRAME_PAST:]), 1)
        else:
            ends = ends_at(heard, CODE_PAST, ahead), ends_at(heard * FRAMES_PER_CODE, FRAME_PAST, x)
            columns = torch.cat((ahead.gather(1, ends[0]), x.gather(1, ends[1])), 1)
        x = self._up_embed(_convolve(x, self._up))
        x = _run(self._up_blocks, x, past and past.frames, self.width)
        return F.linear(F.layer_norm(x, (self.width,), *self._norm), *self._out), columns


def ends_at(lengths: torch.Tensor, count: int, like: torch.Tensor) -> torch.Tensor:
    """Where the last `count` rows of each are behind `count` earlier ones: to gather from like [B, count + n, ...]."""
    at = lengths[:, None] + torch.arange(count, device=lengths.device)
    return at.view(*at.shape, *(1 for _ in like.shape[2:])).expand(-1, -1, *like.shape[2:])


def _convolve(x: torch.Tensor, conv: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """[B, n, C] to [B, n - taps + 1, C]."""
    return F.conv1d(x.transpose(1, 2), *conv).transpose(1, 2)


def _run(blocks: list[_Block], x: torch.Tensor, keys: KeyView | None, width: int) -> torch.Tensor:
    n = x.shape[1]
    seen = keys.length if keys is not None else n
    positions = relative_positions(n, seen, width, x)
    # Row i, column j: the entry of `positions` for query i, which stands at seen - n + i, and key j.
    offsets = torch.arange(n, device=x.device)[:, None] - torch.arange(seen, device=x.device) + seen - 1
    for layer, block in enumerate(blocks):
        x = block(x, positions, offsets, keys, layer)
    return x


def relative_positions(n: int, seen: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """[seen + n - 1, C]: sines at even and cosines at odd columns, of query minus key from 1 - n to seen - 1."""
    distance = torch.arange(1 - n, seen, device=like.device, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, device=like.device, dtype=torch.float32) * (-math.log(1e4) / width))
    angles = distance * rates
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1).to(like.dtype)


class _Embedding:
    """Linear, LayerNorm, and the scale of the relative encoding."""

    def __init__(self, w: Weights, prefix: str, d: int) -> None:
        self._linear = (w.take(f"{prefix}0.weight", d, d), w.take(f"{prefix}0.bias", d))
        self._norm = (w.take(f"{prefix}1.weight", d), w.take(f"{prefix}1.bias", d))
        self._scale = math.sqrt(d)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(F.linear(x, *self._linear), (x.shape[-1],), *self._norm) * self._scale


class _Block:
    """Relative attention as in Transformer-XL, then an MLP; each behind a LayerNorm and beside a shortcut."""

    def __init__(self, w: Weights, prefix: str, c: FlowConfig) -> None:
        d, heads = c.width, c.encoder_heads
        attn = f"{prefix}self_attn."

        def pair(name: str, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
            return w.take(f"{prefix}{name}.weight", *shape), w.take(f"{prefix}{name}.bias", shape[0])

        parts = [pair(f"self_attn.linear_{name}", d, d) for name in ("q", "k", "v")]
        self._qkv = torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])
        self._out = pair("self_attn.linear_out", d, d)
        self._positions = w.take(f"{attn}linear_pos.weight", d, d)
        self._biases = tuple(w.take(f"{attn}pos_bias_{name}", heads, d // heads) for name in ("u", "v"))
        self._up, self._down = pair("feed_forward.w_1", c.encoder_ffn, d), pair("feed_forward.w_2", d, c.encoder_ffn)
        self._norm1, self._norm2 = (
            (w.take(f"{prefix}{name}.weight", d), w.take(f"{prefix}{name}.bias", d)) for name in ("norm_mha", "norm_ff")
        )
        self._heads = heads

    def __call__(
        self, x: torch.Tensor, positions: torch.Tensor, offsets: torch.Tensor, keys: KeyView | None, layer: int
    ) -> torch.Tensor:
        """x [B, n, C]; positions [R, C]; offsets [n, L] int64 into them."""
        d = x.shape[-1]
        qkv = F.linear(F.layer_norm(x, (d,), *self._norm1, eps=_BLOCK_EPS), *self._qkv)
        q, kv = qkv[..., :d], torch.stack((qkv[..., d : 2 * d], qkv[..., 2 * d :]))
        mask = None
        if keys is not None:
            kv, mask = keys.extend(0, layer, kv), keys.mask
        x = x + F.linear(self._attend(q, kv, positions, offsets, mask), *self._out)
        y = F.layer_norm(x, (d,), *self._norm2, eps=_BLOCK_EPS)
        return x + F.linear(F.silu(F.linear(y, *self._up)), *self._down)

    def _attend(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        positions: torch.Tensor,
        offsets: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        b, n, d = q.shape
        q = q.view(b, n, self._heads, -1)
        k, v = kv.view(2, b, -1, self._heads, d // self._heads).transpose(2, 3)
        p = F.linear(positions, self._positions).view(-1, self._heads, d // self._heads).permute(1, 2, 0)
        content, place = ((q + bias).transpose(1, 2) for bias in self._biases)
        by_place = (place @ p).gather(-1, offsets.expand(b, self._heads, -1, -1))
        scores = (content @ k.transpose(-1, -2) + by_place) / math.sqrt(d // self._heads)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)
