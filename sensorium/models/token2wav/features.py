"""What the codec hears of a reference voice: log-mel spectra at 16 and 24 kHz, and Kaldi's filterbank.

S samples · T frames
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

VOICE_RATE = 16_000
_TOKENIZER_FFT, _TOKENIZER_HOP, TOKENIZER_BANDS = 400, 160, 128
_PROMPT_FFT, _PROMPT_HOP, _PROMPT_BANDS, _PROMPT_TOP = 1920, 480, 80, 8000.0
_KALDI_FFT, _KALDI_WINDOW, _KALDI_HOP, SPEAKER_BANDS, _KALDI_LOW = 512, 400, 160, 80, 20.0


def tokenizer_mel(samples: torch.Tensor) -> torch.Tensor:
    """[S] at 16 kHz to [128, S // 160], scaled as Whisper's."""
    window = torch.hann_window(_TOKENIZER_FFT, device=samples.device)
    spectrum = torch.stft(samples, _TOKENIZER_FFT, _TOKENIZER_HOP, window=window, return_complex=True)
    power = spectrum[:, :-1].abs() ** 2
    mel = _slaney(VOICE_RATE, _TOKENIZER_FFT, TOKENIZER_BANDS, VOICE_RATE / 2).to(power) @ power
    mel = mel.clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0


def prompt_mel(samples: torch.Tensor) -> torch.Tensor:
    """[S] at 24 kHz to [S // 480, 80]: the mel that flow matching continues."""
    edge = (_PROMPT_FFT - _PROMPT_HOP) // 2
    padded = F.pad(samples[None, None], (edge, edge), mode="reflect")[0, 0]
    window = torch.hann_window(_PROMPT_FFT, device=samples.device)
    spectrum = torch.stft(padded, _PROMPT_FFT, _PROMPT_HOP, window=window, center=False, return_complex=True)
    magnitude = (spectrum.real**2 + spectrum.imag**2 + 1e-9).sqrt()
    mel = _slaney(24_000, _PROMPT_FFT, _PROMPT_BANDS, _PROMPT_TOP).to(magnitude) @ magnitude
    return mel.clamp(min=1e-5).log().T


def speaker_features(samples: torch.Tensor) -> torch.Tensor:
    """[S] at 16 kHz, full scale 1, to [T, 80]: Kaldi's fbank (25 ms every 10 ms, no dither) less its mean over time."""
    frames = samples.unfold(0, _KALDI_WINDOW, _KALDI_HOP)
    frames = frames - frames.mean(1, keepdim=True)
    before = F.pad(frames[:, None], (1, 0), mode="replicate")[:, 0, :-1]
    window = torch.hann_window(_KALDI_WINDOW, periodic=False, device=samples.device) ** 0.85
    spectrum = torch.fft.rfft((frames - 0.97 * before) * window, _KALDI_FFT)
    power = spectrum.abs() ** 2
    mel = (power[:, :-1] @ _kaldi().to(power)).clamp(min=torch.finfo(torch.float32).eps).log()
    return mel - mel.mean(0, keepdim=True)


@lru_cache(maxsize=4)
def _slaney(rate: int, fft: int, bands: int, top: float) -> torch.Tensor:
    """[bands, fft/2 + 1]: triangles of unit area, evenly spaced on the Slaney mel scale from 0 to `top` Hz."""
    frequencies = np.linspace(0.0, rate / 2, fft // 2 + 1)
    log_step = math.log(6.4) / 27.0
    mel_top = 15.0 + math.log(top / 1000.0) / log_step if top >= 1000.0 else top * 3.0 / 200.0
    mels = np.linspace(0.0, mel_top, bands + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp((mels - 15.0) * log_step))
    rising = (frequencies[None] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - frequencies[None]) / np.diff(edges)[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters.astype(np.float32))


@lru_cache(maxsize=1)
def _kaldi() -> torch.Tensor:
    """[256, 80]: triangles of height 1 on Kaldi's mel scale from 20 Hz to 8 kHz."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(mel(np.array(_KALDI_LOW)), mel(np.array(VOICE_RATE / 2)), SPEAKER_BANDS + 2)
    bins = mel(np.arange(_KALDI_FFT // 2) * (VOICE_RATE / _KALDI_FFT))[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.from_numpy(np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32))
