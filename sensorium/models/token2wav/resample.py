"""Windowed-sinc resampling as the reference's: torchaudio's defaults (6 zero crossings, roll-off 0.99, Hann window)."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F

_CROSSINGS, _ROLLOFF = 6, 0.99


def resample(samples: torch.Tensor, rate: int, to: int) -> torch.Tensor:
    """[..., S] float32 at `rate` to [..., ceil(S · to / rate)] at `to` samples per second."""
    if rate == to:
        return samples
    common = math.gcd(rate, to)
    rate, to = rate // common, to // common
    kernels, width = _kernels(rate, to)
    flat = F.pad(samples.reshape(-1, 1, samples.shape[-1]), (width, width + rate))
    out = F.conv1d(flat, kernels.to(samples), stride=rate).transpose(1, 2).reshape(len(flat), -1)
    return out[:, : math.ceil(to * samples.shape[-1] / rate)].reshape(*samples.shape[:-1], -1)


@lru_cache(maxsize=16)
def _kernels(rate: int, to: int) -> tuple[torch.Tensor, int]:
    """([to, 1, taps]: a low-pass for each output phase, samples it reaches to each side); rates in lowest terms."""
    cut = min(rate, to) * _ROLLOFF
    width = math.ceil(_CROSSINGS * rate / cut)
    taps = torch.arange(-width, width + rate, dtype=torch.float64) / rate
    phases = torch.arange(0, -to, -1, dtype=torch.float64) / to
    t = ((phases[:, None] + taps[None]) * cut).clamp(-_CROSSINGS, _CROSSINGS)
    window = torch.cos(t * math.pi / _CROSSINGS / 2) ** 2
    return (torch.sinc(t) * window * (cut / rate)).float()[:, None], width
