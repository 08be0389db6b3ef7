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

Snake = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, "torch.Tensor | None"], torch.Tensor]


def snake(
    x: torch.Tensor, alpha: torch.Tensor, share: torch.Tensor, left: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x [B, C, L], alpha and share = 1 / alpha [C, 1] -> [B, C, left + L], zeros before the sound.

    bias [C]: of the convolution that made x, where it is still to be added.
    """
    if x.requires_grad:  # the kernel has no gradient
        return by_torch(x, alpha, share, left, bias)
    return _kernel(x.device.type)(x, alpha, share, left, bias)


def by_torch(
    x: torch.Tensor, alpha: torch.Tensor, share: torch.Tensor, left: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    own = x.to(alpha.dtype)
    own = own if bias is None else own + bias[:, None]
    wave = torch.sin(alpha * own)
    y = torch.addcmul(own, wave * share, wave).to(x.dtype)
    return F.pad(y, (left, 0)) if left else y


@cache
def _kernel(device: str) -> Snake:
    if device == "cuda" and importlib.util.find_spec("triton") is not None:
        return importlib.import_module("sensorium.kernels.triton_snake").snake
    return by_torch
