"""Whisper's log-mel features in numpy, and how many rows the audio encoders of MiniCPM-o make of them.

S samples at 16 kHz · F mel frames, 100 per second · 80 bands.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

RATE = 16_000
CLIP = 30 * RATE
FFT, HOP, BANDS = 400, 160, 80
_BLOCK = 128
_SILENCE = (math.log10(1e-10) + 4.0) / 4.0


def split_clips(samples: np.ndarray) -> list[np.ndarray]:
    """The encoder hears at most 30 s at once."""
    return [samples[start : start + CLIP] for start in range(0, max(len(samples), 1), CLIP)]


def mel_frames(samples: int) -> int:
    return math.ceil(samples / HOP)


def pooled_rows(samples: int, pool: int) -> int:
    """Rows of a clip: mel frames, halved by the second convolution, then averaged `pool` at a time."""
    return ((mel_frames(samples) - 1) // 2 + 1) // pool


def total_rows(samples: int, pool: int) -> int:
    """Rows of a recording of any length, clip by clip."""
    whole, rest = divmod(samples, CLIP)
    return whole * pooled_rows(CLIP, pool) + (pooled_rows(rest, pool) if rest else 0)


def largest_sound(rows: int, pool: int) -> int:
    """Samples of the longest recording of at most so many rows, at least 0.1 s."""
    whole, rest = divmod(rows, pooled_rows(CLIP, pool))
    return max(whole * CLIP + rest * pool * 2 * HOP, RATE // 10)


def log_mel(clip: np.ndarray) -> np.ndarray:
    """[S] float32, at most 30 s, to [80, F] float32: as if padded with zeros to 30 s, though only F frames are made."""
    frames = mel_frames(len(clip))
    if not clip.any():
        return np.full((BANDS, frames), _SILENCE, dtype=np.float32)
    # Two more frames than asked for still touch the sound: the reference takes its maximum over them too.
    counted = min(frames + 2, CLIP // HOP)
    around = FFT // 2
    padded = np.zeros(min(CLIP, (counted + 3) * HOP) + 2 * around, dtype=np.float64)
    padded[around : around + len(clip)] = clip
    padded[:around] = padded[2 * around : around : -1]
    padded[-around:] = padded[-around - 2 : -2 * around - 2 : -1]
    mel = log_powers(padded, counted)
    np.maximum(mel, mel.max() - 8.0, out=mel)
    mel += 4.0
    mel /= 4.0
    return np.ascontiguousarray(mel[:frames].T, dtype=np.float32)


def log_powers(samples: np.ndarray, frames: int) -> np.ndarray:
    """[S] float64 -> [F, 80]: log10 of the mel powers of windows of 400 samples, one every 160.

    In blocks that stay in a core's cache: fresh memory for all frames at once took longer than the arithmetic.
    """
    windows = np.lib.stride_tricks.sliding_window_view(samples, FFT)[: frames * HOP : HOP]
    found = np.empty((frames, BANDS))
    for start in range(0, frames, _BLOCK):
        spectrum = np.fft.rfft(windows[start : start + _BLOCK] * hann(), axis=1)
        power = spectrum.real**2
        power += spectrum.imag**2
        for bands, bins, filters in _filter_parts():
            np.matmul(power[:, bins], filters, out=found[start : start + _BLOCK, bands])
    np.maximum(found, 1e-10, out=found)
    return np.log10(found, out=found)


@lru_cache(maxsize=1)
def hann() -> np.ndarray:
    """[400]."""
    return np.hanning(FFT + 1)[:-1]


@lru_cache(maxsize=1)
def mel_filters() -> np.ndarray:
    """[201, 80]: triangles on the Slaney mel scale from 0 to 8 kHz, each of unit area."""
    frequencies = np.linspace(0.0, RATE / 2, FFT // 2 + 1)
    edges = _from_mel(np.linspace(0.0, _to_mel(RATE / 2), BANDS + 2))
    rising = (frequencies[:, None] - edges[None, :-2]) / np.diff(edges)[:-1]
    falling = (edges[None, 2:] - frequencies[:, None]) / np.diff(edges)[1:]
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))


@lru_cache(maxsize=1)
def _filter_parts() -> tuple[tuple[slice, slice, np.ndarray], ...]:
    """The filters in four parts, each with the frequencies that it hears: a quarter of the products with the whole."""
    parts: list[tuple[slice, slice, np.ndarray]] = []
    for first in range(0, BANDS, BANDS // 4):
        bands = slice(first, first + BANDS // 4)
        heard = np.flatnonzero(mel_filters()[:, bands].any(axis=1))
        bins = slice(int(heard[0]), int(heard[-1]) + 1)
        parts.append((bands, bins, np.ascontiguousarray(mel_filters()[bins, bands])))
    return tuple(parts)


def _to_mel(frequency: float) -> float:
    """Slaney: linear below 1 kHz (15 mels), logarithmic above."""
    return 15.0 + math.log(frequency / 1000.0) * 27.0 / math.log(6.4)


def _from_mel(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp((mels - 15.0) * math.log(6.4) / 27.0))
