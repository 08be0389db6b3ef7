"""Cutting a long recording where it is quiet, for models that hear only some seconds at a time."""

from __future__ import annotations

import numpy as np


def split_audio(
    audio_data: np.ndarray,
    sample_rate: int,
    max_clip_duration_s: float,
    overlap_duration_s: float,
    min_energy_window_size: int,
) -> list[np.ndarray]:
    """[S] samples as views of it that follow one another without gap or overlap, none longer than a clip may be.

    A cut is made at the start of the quietest window of `min_energy_window_size` samples within the last
    `overlap_duration_s` seconds of the longest possible clip; of equally quiet ones, the first. Raises ValueError.
    """
    samples = np.asarray(audio_data)
    if samples.ndim != 1:
        raise ValueError(f"audio_data must be one-dimensional; it has shape {samples.shape}")
    clip, area = int(sample_rate * max_clip_duration_s), int(sample_rate * overlap_duration_s)
    for name, value in (
        ("sample_rate", sample_rate),
        ("max_clip_duration_s", clip),
        ("min_energy_window_size", min_energy_window_size),
    ):
        if not value > 0:
            raise ValueError(f"{name} must be positive, and a clip at least one sample long")
    if area < 0:
        raise ValueError(f"overlap_duration_s must not be negative; it is {overlap_duration_s}")
    pieces: list[np.ndarray] = []
    start = 0
    while len(samples) - start > clip:
        low = start + clip - area
        cut = low + _quietest(samples[max(low, 0) : start + clip], min_energy_window_size)
        if cut <= start:
            cut = start + clip
        pieces.append(samples[start:cut])
        start = cut
    return [*pieces, samples[start:]] if len(samples) else []


def _quietest(samples: np.ndarray, window: int) -> int:
    """Where the window of least energy starts; 0 if there is none. A last one that ends with the samples is left out,
    as in vLLM, whose cuts these must equal."""
    count = max(-(-(len(samples) - window) // window), 0)
    if not count:
        return 0
    energies = np.sqrt(np.mean(samples[: count * window].reshape(count, window) ** 2, axis=1))
    energies = np.where(np.isnan(energies), np.inf, energies)
    return int(np.argmin(energies)) * window
