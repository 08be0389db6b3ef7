"""minicpm_mel.log_mel for many clips at once, on the model's device; in float64 as there, so the numbers are the same.

B clips · T mel frames of the longest · L frames whose maximum counts
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from sensorium.models.minicpm_mel import BANDS, CLIP, FFT, HOP, hann, mel_filters


def log_mels(samples: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """samples float32 [B, 160 T], 0 behind the counts [B] that belong to a clip, at least 3 frames.

    Returns float32 [B, 80, T], 0 behind a clip's frames, and how many those are: int64 [B].
    """
    longest = samples.shape[1] // HOP
    transform, filters = _bases(samples.device)
    frames = (counts + (HOP - 1)) // HOP
    counted = (frames + 2).clamp(max=CLIP // HOP)
    num = min(longest + 2, CLIP // HOP)
    windows = _padded(samples, longest).unfold(1, FFT, HOP)[:, :num]
    real, imaginary = (windows @ transform).chunk(2, -1)
    mel = ((real.square() + imaginary.square()) @ filters).clamp_(min=1e-10).log10_()
    at = torch.arange(num, device=samples.device)
    silent = (at >= counted[:, None])[..., None]
    top = mel.masked_fill(silent, float("-inf")).amax((1, 2), keepdim=True)
    mel = ((torch.maximum(mel, top - 8.0) + 4.0) / 4.0)[:, :longest]
    mel = mel.masked_fill((at[:longest] >= frames[:, None])[..., None], 0.0)
    return mel.transpose(1, 2).float(), frames


def _padded(samples: torch.Tensor, longest: int) -> torch.Tensor:
    """Float64, with what the windows of frames at the ends read: the sound mirrored, or the zeros behind it."""
    around = FFT // 2
    if longest + 2 > CLIP // HOP:
        samples = F.pad(samples, (0, CLIP - samples.shape[1]))
        behind = samples[:, -around - 1 : -1].flip(1)
    else:
        behind = samples.new_zeros(len(samples), 2 * HOP + around)
    return torch.cat((samples[:, 1 : around + 1].flip(1), samples, behind), 1).double()


@lru_cache(maxsize=8)
def _bases(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The windowed Fourier transform, real parts then imaginary ones: float64 [400, 402]; filters [201, 80]."""
    angles = np.outer(np.arange(FFT), np.arange(FFT // 2 + 1)) % FFT * (2 * np.pi / FFT)
    transform = np.concatenate((np.cos(angles), -np.sin(angles)), 1) * hann()[:, None]
    assert mel_filters().shape[1] == BANDS
    return torch.from_numpy(transform).to(device), torch.from_numpy(mel_filters()).to(device)
