"""The diffusion transformer that estimates the flow's velocity, and the Euler solver around it.

B streams · T new frames · L frames seen · C width · H heads · two guidance rows: 0 with the condition, 1 without

Both rows of a frame lie beside each other, x [B, T, 2, C]; attention treats them as 2H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sensorium.kernels.dit import DitOps, dit_ops
from sensorium.models.token2wav.config import MELS, FlowConfig
from sensorium.models.token2wav.rows import KeyView
from sensorium.models.token2wav.steps import Steps
from sensorium.models.token2wav.weights import Weights

ROWS = 2
TAPS_PAST = 2
"""Columns that a causal convolution of three taps keeps of the chunk before."""
_FREQUENCIES, _TIME_SCALE = 128, 1000.0
# The vectors that a time step gives each block, in the checkpoint's order.
_SHIFT_A, _SCALE_A, _GATE_A, _SHIFT_M, _SCALE_M, _GATE_M, _SHIFT_C, _SCALE_C, _GATE_C = range(9)


@dataclass(frozen=True, slots=True)
class EstimatorPast:
    """What a chunk sees of those before. columns[step]: [depth, B, 2 convolutions, 2 columns, 2 rows, C].

    ends int64 [B]: how many frames of each stream are its own; None: all.
    """

    keys: KeyView
    columns: list[torch.Tensor]
    ends: torch.Tensor | None = None


class Estimator:
    """A DiT without positions: what a frame sees is a set. Source: decoder_dit.py of Step-Audio 2."""

    def __init__(self, w: Weights, c: FlowConfig, n_timesteps: int) -> None:
        d, prefix = c.hidden, "decoder.estimator."
        self._width, self._cfg_rate = d, c.cfg_rate
        self.times = time_span(n_timesteps)
        embedding = _time_embedding(w, self.times[:-1], d)
        in_weight = w.take(f"{prefix}in_proj.weight", d, 4 * MELS)
        # The noisy mel changes at every step; mu, speaker and known mel do not, so they are projected once.
        self._in_x, self._in_given = in_weight[:, :MELS].contiguous(), in_weight[:, MELS:].contiguous()
        self._in_bias = w.take(f"{prefix}in_proj.bias", d)
        self._blocks = [_Block(w, f"{prefix}blocks.{i}.", c, embedding) for i in range(c.depth)]
        final = _modulation(w, f"{prefix}final_layer.adaLN_modulation.1.", embedding, 2, d)
        self._final_shift, self._final_scale = final.unbind(1)
        self._out = (
            w.take(f"{prefix}final_layer.linear.weight", MELS, d),
            w.take(f"{prefix}final_layer.linear.bias", MELS),
        )

    @property
    def n_timesteps(self) -> int:
        return len(self.times) - 1

    def solve(
        self,
        noise: torch.Tensor,
        mu: torch.Tensor,
        speaker: torch.Tensor,
        known: torch.Tensor,
        past: EstimatorPast | None = None,
    ) -> Steps[tuple[torch.Tensor, list[torch.Tensor]]]:
        """noise, mu, known [B, T, 80], speaker [B, 80] to (mel [B, T, 80] float32, columns for the next chunk by step).

        Without a past the frames see each other and nothing else. A slice is a time step.
        """
        given = self.condition(mu, speaker, known)
        x = noise.float()
        columns = []
        for step in range(self.n_timesteps):
            velocity, after = self.velocity(step, x, given, past)
            columns.append(after)
            guided = (1.0 + self._cfg_rate) * velocity[:, :, 0] - self._cfg_rate * velocity[:, :, 1]
            x = x + (self.times[step + 1] - self.times[step]) * guided
            yield None
        return x, columns

    def condition(self, mu: torch.Tensor, speaker: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """What does not change from step to step, projected: [B, T, 2, C]."""
        given = torch.cat((mu, speaker[:, None].expand_as(mu), known), -1).to(self._in_given.dtype)
        with_it = F.linear(given, self._in_given)
        return torch.stack((with_it, torch.zeros_like(with_it)), 2) + self._in_bias

    def velocity(
        self, step: int, x: torch.Tensor, given: torch.Tensor, past: EstimatorPast | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, T, 80] and the projected condition [B, T, 2, C] to (velocities [B, T, 2, 80], columns)."""
        y = F.linear(x.to(given.dtype), self._in_x)[:, :, None] + given
        before = past.columns[step] if past is not None else [None] * len(self._blocks)
        columns = []
        for layer, block in enumerate(self._blocks):
            y, after = block(y, step, layer, past, before[layer])
            columns.append(after)
        y = dit_ops(y).modulate(y, self._final_shift[step], self._final_scale[step])
        return F.linear(y, *self._out).float(), torch.stack(columns)


class _Block:
    """Attention, convolution and MLP, each shifted, scaled and gated by the time step."""

    def __init__(self, w: Weights, prefix: str, c: FlowConfig, embedding: torch.Tensor) -> None:
        d, inner = c.hidden, c.heads * c.head_dim

        def pair(name: str, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
            return w.take(f"{prefix}{name}.weight", *shape), w.take(f"{prefix}{name}.bias", shape[0])

        parts = [pair(f"attn.to_{name}", inner, d) for name in ("q", "k", "v")]
        self._qkv = torch.cat([weight for weight, _ in parts]), torch.cat([bias for _, bias in parts])
        self._q_norm, self._k_norm = pair("attn.q_norm", c.head_dim), pair("attn.k_norm", c.head_dim)
        self._proj = pair("attn.proj", d, inner)
        self._up, self._down = pair("mlp.fc1", c.mlp, d), pair("mlp.fc2", d, c.mlp)
        self._conv_norm = pair("conv.block.3", d)
        # As products over the three taps side by side: the frames keep their layout.
        self._convs = [
            (weight.permute(0, 2, 1).reshape(d, -1).contiguous(), bias)
            for weight, bias in (pair("conv.block.1", d, d, 3), pair("conv.block.6", d, d, 3))
        ]
        self._steps = _modulation(w, f"{prefix}adaLN_modulation.1.", embedding, 9, d)
        self._heads, self._head_dim = c.heads, c.head_dim

    def __call__(
        self, x: torch.Tensor, step: int, layer: int, past: EstimatorPast | None, before: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B, T, 2, C] and columns [B, 2, 2, 2, C] or None to the same."""
        m, ops = self._steps[step], dit_ops(x)
        y = ops.modulate(x, m[_SHIFT_A], m[_SCALE_A])
        y = self._attend(ops, y, step, layer, past and past.keys)
        x, y = ops.add_modulate(x, y, m[_GATE_A], m[_SHIFT_C], m[_SCALE_C])
        y, columns = self._convolve(ops, y, before, past and past.ends)
        x, y = ops.add_modulate(x, y, m[_GATE_C], m[_SHIFT_M], m[_SCALE_M])
        y = F.linear(F.gelu(F.linear(y, *self._up), approximate="tanh"), *self._down)
        return torch.addcmul(x, m[_GATE_M], y), columns

    def _attend(self, ops: type[DitOps], x: torch.Tensor, step: int, layer: int, keys: KeyView | None) -> torch.Tensor:
        b, n = x.shape[:2]
        q, kv = ops.split(F.linear(x, *self._qkv), self._heads, self._q_norm, self._k_norm)
        mask = None
        if keys is not None:
            kv, mask = keys.extend(step, layer, kv), keys.mask
        k, v = kv.view(2, b, -1, ROWS * self._heads, self._head_dim).transpose(2, 3)
        q = q.reshape(b, n, ROWS * self._heads, self._head_dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return F.linear(out.transpose(1, 2).reshape(b, n, ROWS, -1), *self._proj)

    def _convolve(
        self, ops: type[DitOps], x: torch.Tensor, before: torch.Tensor | None, ends: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(x), 2, TAPS_PAST, *x.shape[2:])
        before = x.new_zeros(shape) if before is None else before
        columns = x.new_empty(shape)
        first, second = self._convs
        x = F.linear(ops.taps(x, before[:, 0], ends, columns[:, 0]), *first)
        x = ops.norm_mish(x, self._conv_norm)
        return F.linear(ops.taps(x, before[:, 1], ends, columns[:, 1]), *second), columns


def time_span(n: int) -> list[float]:
    """n + 1 times from 0 to 1, dense at the start."""
    return [1.0 - math.cos(math.pi / 2 * i / n) for i in range(n + 1)]


def _time_embedding(w: Weights, times: list[float], d: int) -> torch.Tensor:
    """[n, C]: what every adaLN layer takes, SiLU applied."""
    prefix = "decoder.estimator.t_embedder.mlp."
    rates = torch.exp(torch.arange(_FREQUENCIES, device=w.device) * (-math.log(1e4) / _FREQUENCIES))
    angles = torch.tensor(times, device=w.device)[:, None] * _TIME_SCALE * rates
    x = torch.cat((angles.cos(), angles.sin()), -1).to(w.dtype)
    x = F.silu(F.linear(x, w.take(f"{prefix}0.weight", d, 2 * _FREQUENCIES), w.take(f"{prefix}0.bias", d)))
    return F.silu(F.linear(x, w.take(f"{prefix}2.weight", d, d), w.take(f"{prefix}2.bias", d)))


def _modulation(w: Weights, prefix: str, embedding: torch.Tensor, count: int, d: int) -> torch.Tensor:
    """[n, count, C]. Time steps are known when the model is loaded, so the layers that make these are not kept."""
    made = F.linear(embedding, w.take(f"{prefix}weight", count * d, d), w.take(f"{prefix}bias", count * d))
    return made.view(len(embedding), count, d)
