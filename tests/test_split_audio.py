"""Where split_audio cuts: the published vectors, and what always holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.multimodal.audio import split_audio


def wave(seconds: float, rate: int, period: float) -> np.ndarray:
    n = np.arange(int(seconds * rate))
    return (np.sin(2 * np.pi * 440 * n / rate) * (0.5 + 0.5 * np.cos(2 * np.pi * n / (rate * period)))).astype(
        np.float32
    )


def with_silence(start: float, end: float) -> np.ndarray:
    samples = np.ones(65 * 16000, dtype=np.float32)
    samples[int(start * 16000) : int(end * 16000)] = 0
    return samples


FLAT = (464000, 464000, 112000)
VECTORS = [
    (wave(65, 16000, 7.3), 16000, 30, 1, 1600, (476800, 476800, 86400)),
    (wave(65, 16000, 0.37), 16000, 30, 1, 1600, (464000, 473600, 102400)),
    (wave(100, 8000, 0.9), 8000, 30, 2, 400, (226400, 230400, 230400, 112800)),
    (wave(70, 44100, 1.3), 44100, 30, 1, 4410, (1287720, 1314180, 485100)),
    (wave(60, 16000, 0.37), 16000, 30, 1, 1600, (464000, 473600, 22400)),
    (wave(29.9, 16000, 7.3), 16000, 30, 1, 1600, (478400,)),
    (wave(30, 16000, 7.3), 16000, 30, 1, 1600, (480000,)),
    (np.zeros(65 * 16000), 16000, 30, 1, 1600, FLAT),
    (np.ones(65 * 16000), 16000, 30, 1, 1600, FLAT),
    (np.full(65 * 16000, np.nan), 16000, 30, 1, 1600, FLAT),
    (with_silence(29.9, 30), 16000, 30, 1, 1600, FLAT),
    (with_silence(29.5, 29.6), 16000, 30, 1, 1600, (472000, 464000, 104000)),
    (wave(65, 16000, 7.3), 16000, 30, 0.05, 1600, (479200, 479200, 81600)),
    (np.ones(48000), 16000, 1, 1, 1600, (16000, 16000, 16000)),
    (wave(3, 16000, 7.3), 16000, 1, 1, 1600, (12800, 12800, 12800, 9600)),
]


@pytest.mark.parametrize("vector", VECTORS)
def test_published_vectors(vector):
    samples, rate, clip, overlap, window, lengths = vector
    pieces = split_audio(samples, rate, clip, overlap, window)
    assert tuple(map(len, pieces)) == lengths
    assert np.array_equal(np.concatenate(pieces), samples, equal_nan=True)


@given(
    st.integers(0, 4000),
    st.integers(1, 400),
    st.floats(0.01, 3),
    st.floats(0, 4),
    st.integers(1, 500),
    st.integers(0, 2**32 - 1),
)
def test_nothing_is_lost_and_no_clip_is_too_long(count, rate, clip, overlap, window, seed):
    samples = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    if int(rate * clip) < 1:
        with pytest.raises(ValueError, match="clip"):
            split_audio(samples, rate, clip, overlap, window)
        return
    pieces = split_audio(samples, rate, clip, overlap, window)
    assert all(0 < len(piece) <= int(rate * clip) and piece.dtype == np.float32 for piece in pieces)
    assert np.array_equal(np.concatenate([np.zeros(0, np.float32), *pieces]), samples)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"audio_data": np.zeros((2, 9))}, "one-dimensional"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"max_clip_duration_s": -1}, "max_clip_duration_s"),
        ({"overlap_duration_s": -1}, "overlap_duration_s"),
        ({"min_energy_window_size": 0}, "min_energy_window_size"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, named):
    usual = {
        "audio_data": np.zeros(99),
        "sample_rate": 9,
        "max_clip_duration_s": 2,
        "overlap_duration_s": 1,
        "min_energy_window_size": 3,
    }
    with pytest.raises(ValueError, match=named):
        split_audio(**(usual | changes))
    assert split_audio(np.zeros(0), 9, 1, 1, 1) == []
