"""Pictures scaled on the device of the model, bit for bit as Pillow's bicubic scales them on a CPU.

Pillow computes 8-bit pictures with whole numbers: coefficients times 2**22, sums in 32 bits, and after each of the two
passes a rounding shift and a clip to 0..255. The order of additions does not matter to whole numbers, so any device
that adds the same products gets the same pixels. Columns are scaled first, then rows.

A rows before the axis · N numbers along it · M after scaling · B numbers behind it · T taps
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
import torch

BITS = 22
_SUPPORT = 2.0
_SHARPNESS = -0.5


def resize(pixels: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """uint8 [H, W, 3] -> [height, width, 3] on the same device; as it is where no side changes."""
    before, across, channels = pixels.shape
    scale = _scale(pixels.device)
    if across != width:
        pixels = scale(pixels.reshape(before, across, channels), width)
    if before != height:
        pixels = scale(pixels.reshape(1, before, width * channels), height)
    return pixels.reshape(height, width, channels)


def scale_by_torch(x: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 [A, N, B] -> [A, size, B], in torch's operations."""
    starts, weights = taps_on(x.shape[1], size, x.device)
    total = torch.full((x.shape[0], size, x.shape[2]), 1 << (BITS - 1), dtype=torch.int32, device=x.device)
    for tap in range(weights.shape[1]):
        # Beyond the last number the weight is 0.
        at = (starts + tap).clamp(max=x.shape[1] - 1)
        total += x.index_select(1, at).int() * weights[:, tap, None]
    return (total >> BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=256)
def taps_on(n: int, m: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """As taps."""
    starts, weights = taps(n, m)
    return torch.from_numpy(starts).to(device), torch.from_numpy(weights).to(device)


def taps(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """n numbers as m: where each begins to read, int32 [m], and its weights times 2**22, int32 [m, T], 0 at the end.

    In double precision and in Pillow's order of operations, as the last bit may decide a rounding.
    """
    scale = n / m
    stretch = max(scale, 1.0)
    centers = (np.arange(m) + 0.5) * scale
    starts = np.maximum((centers - _SUPPORT * stretch + 0.5).astype(np.int64), 0)
    stops = np.minimum((centers + _SUPPORT * stretch + 0.5).astype(np.int64), n)
    at = np.arange((stops - starts).max())
    factors = _bicubic((at + starts[:, None] - centers[:, None] + 0.5) * (1.0 / stretch))
    factors[at >= (stops - starts)[:, None]] = 0.0
    totals = np.zeros(m)
    for tap in at:
        totals += factors[:, tap]
    factors /= totals[:, None]
    scaled = factors * (1 << BITS)
    weights = np.trunc(np.where(factors < 0, scaled - 0.5, scaled + 0.5)).astype(np.int32)
    return starts.astype(np.int32), weights


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = _SHARPNESS, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@cache
def _scale(device: torch.device) -> Callable[[torch.Tensor, int], torch.Tensor]:
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        return importlib.import_module("sensorium.kernels.triton_resample").scale
    return scale_by_torch
