"""The activation of HiFT's residual blocks, x + sin²(alpha x) / alpha, into the padding of the convolution behind it.

B sounds · C channels · L samples
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

Snake = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def snake(x: torch.Tensor, alpha: torch.Tensor, share: torch.Tensor, left: int) -> torch.Tensor:
    """x [B, C, L], alpha and share = 1 / alpha [C, 1] -> [B, C, left + L], zeros before the sound."""
    if x.requires_grad:  # the kernel has no gradient
        return by_torch(x, alpha, share, left)
    return _kernel(x.device.type)(x, alpha, share, left)


def by_torch(x: torch.Tensor, alpha: torch.Tensor, share: torch.Tensor, left: int) -> torch.Tensor:
    wave = torch.sin(alpha * x)
    y = torch.addcmul(x, wave * share, wave)
    return F.pad(y, (left, 0)) if left else y


@cache
def _kernel(device: str) -> Snake:
    if device == "cuda" and importlib.util.find_spec("triton") is not None:
        return importlib.import_module("sensorium.kernels.triton_snake").snake
    return by_torch
