"""Clips on the device: noise, loudness, echo, then Whisper's log-mel as the processor computes it.

C clips · S samples · T mel frames
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from sensorium.models.minicpm_mel import mel_filters

HOP, WINDOW = 160, 400


def roughen(waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """int16 [C, S] -> float32 in -1..1 as different microphones and rooms would give it; zero after each length."""
    num, length = waves.shape
    inside = torch.arange(length, device=waves.device) < lengths[:, None]
    x = waves.float() / 32768 * inside
    chance = torch.rand(9, num, 1, device=waves.device)
    tilt = torch.where(chance[0] < 0.5, chance[1] - 0.5, 0.0)
    x = x + tilt * F.pad(x, (1, 0))[:, :-1]
    echo = torch.where(chance[2] < 0.3, chance[3] * 0.4, 0.0)
    for delay in (431, 977):
        x = x + echo * F.pad(x, (delay, 0))[:, :length]
        echo = echo * -0.6
    loud = 10 ** ((chance[4] * 28 - 24) / 20)
    peak = x.abs().amax(1, keepdim=True).clamp(min=1e-4)
    x = x / peak * loud
    white = torch.randn_like(x)
    brown = F.avg_pool1d(white[:, None], 9, 1, 4)[:, 0] * 2
    noise = torch.where(chance[5] < 0.5, white, brown)
    level = torch.where(chance[6] < 0.55, loud * 10 ** (-(chance[7] * 40 + 22) / 20), 0.0)
    x = (x + noise * level).clamp(-1, 1)
    return torch.round(x * 32767) / 32768 * inside


@cache
def _filters(device: torch.device) -> torch.Tensor:
    return torch.from_numpy(mel_filters()).float().to(device)


def power_mel(windows: torch.Tensor) -> torch.Tensor:
    """[C, T, WINDOW] -> [C, T, 80]: logarithms of the power in each band."""
    hann = torch.hann_window(WINDOW, device=windows.device)
    power = torch.fft.rfft(windows * hann).abs().square()
    return (power @ _filters(windows.device)).clamp(min=1e-10).log10()


def log_mel(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [C, S], S a whole number of hops -> mel [C, 80, T] float32, zero after each clip's frames; frames [C]."""
    frames = (lengths + HOP - 1) // HOP
    count = x.shape[1] // HOP
    padded = torch.cat((x[:, 1 : WINDOW // 2 + 1].flip(1), x, x.new_zeros(len(x), WINDOW)), 1)
    mel = power_mel(padded.unfold(1, WINDOW, HOP)[:, :count])
    mel = torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8)
    mel = ((mel + 4) / 4).transpose(1, 2)
    return mel * (torch.arange(count, device=x.device) < frames[:, None])[:, None], frames
