"""Scaling on a device against Pillow, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.kernels.resample import resize, scale_by_torch, taps

if torch.cuda.is_available():
    from sensorium.kernels.triton_resample import scale


def by_pillow(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Two calls, so that every version of Pillow scales columns first."""
    image = Image.fromarray(pixels).resize((width, pixels.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def noise(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Of black and white half of the time, where sums go far beyond 0 and 255."""
    values = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return values if rng.random() < 0.5 else np.where(values < 128, np.uint8(0), np.uint8(255))


@pytest.mark.parametrize("seed", range(4))
def test_pixels_are_those_of_pillow(seed: int):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        sides = rng.integers(1, 4, 4) if rng.random() < 0.2 else rng.integers(1, 120, 4)
        width, height, to_width, to_height = (int(side) for side in sides)
        pixels = noise(rng, width, height)
        found = resize(torch.from_numpy(pixels), to_width, to_height)
        assert np.array_equal(found, by_pillow(pixels, to_width, to_height)), (pixels.shape, to_width, to_height)


@pytest.mark.parametrize("sizes", [(3000, 5, 448, 14), (7, 2000, 28, 448), (1, 1, 448, 448), (1344, 336, 448, 112)])
def test_pixels_of_far_scales_are_those_of_pillow(sizes: tuple[int, int, int, int]):
    width, height, to_width, to_height = sizes
    pixels = noise(np.random.default_rng(0), width, height)
    found = resize(torch.from_numpy(pixels), to_width, to_height)
    assert np.array_equal(found, by_pillow(pixels, to_width, to_height))


def test_a_picture_of_the_right_size_stays_what_it_is():
    pixels = torch.zeros(3, 5, 3, dtype=torch.uint8)
    assert resize(pixels, 5, 3).data_ptr() == pixels.data_ptr()


def test_weights_add_up_to_one_within_their_rounding():
    for n, m in ((1, 7), (7, 1), (448, 448), (1344, 448), (100, 333)):
        starts, weights = taps(n, m)
        assert np.abs(weights.sum(1, dtype=np.int64) - (1 << 22)).max() <= weights.shape[1]
        assert (starts >= 0).all()
        assert (starts < n).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_kernel_makes_the_same_pixels():
    rng = np.random.default_rng(0)
    for _ in range(100):
        shape = tuple(int(side) for side in rng.integers(1, 200, 3))
        size = int(rng.integers(1, 300))
        x = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
        assert torch.equal(scale(x.cuda(), size).cpu(), scale_by_torch(x, size)), (shape, size)
