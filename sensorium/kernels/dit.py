"""What lies between the products of a diffusion transformer's block, fused on a GPU: there each of torch's operations
costs more to start than to compute.

B streams · T frames · R guidance rows · H heads · D head dim · C width
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

Pair = tuple[torch.Tensor, torch.Tensor]
TAPS = 3
_MODULATE_EPS = 1e-6


class DitOps:
    """By torch, with gradients."""

    @staticmethod
    def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """x [..., C] normalised over C, times 1 + scale [C], plus shift [C]."""
        return F.layer_norm(x, (x.shape[-1],), eps=_MODULATE_EPS) * (1.0 + scale) + shift

    @staticmethod
    def add_modulate(
        x: torch.Tensor, y: torch.Tensor, gate: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor
    ) -> Pair:
        """x + gate y, and that modulated."""
        x = x + gate * y
        return x, DitOps.modulate(x, shift, scale)

    @staticmethod
    def split(qkv: torch.Tensor, heads: int, q_norm: Pair, k_norm: Pair) -> Pair:
        """qkv [B, T, R, 3 H D] to q [B, T, R, H, D] and keys and values [2, B, T, R H D]; q and k normalised over D."""
        b, n, rows = qkv.shape[:3]
        parts = qkv.view(b, n, rows, 3, heads, -1)
        q = F.layer_norm(parts[:, :, :, 0], (parts.shape[-1],), *q_norm)
        k = F.layer_norm(parts[:, :, :, 1], (parts.shape[-1],), *k_norm)
        return q, torch.stack((k.reshape(b, n, -1), parts[:, :, :, 2].reshape(b, n, -1)))

    @staticmethod
    def taps(x: torch.Tensor, before: torch.Tensor, ends: torch.Tensor | None, after: torch.Tensor) -> torch.Tensor:
        """x [B, T, R, C] behind before [B, 2, R, C] to the frames that each frame's convolution sees, [B, T, R, 3 C].

        after [B, 2, R, C] gets the last two frames of each stream: ends int64 [B] of x are its own, None: all.
        """
        wide, n = torch.cat((before, x), 1), x.shape[1]
        if ends is None:
            after.copy_(wide[:, -2:])
        else:
            at = (ends[:, None] + torch.arange(2, device=x.device))[..., None, None]
            after.copy_(wide.gather(1, at.expand(-1, -1, *x.shape[2:])))
        return torch.cat([wide[:, tap : tap + n] for tap in range(TAPS)], -1)

    @staticmethod
    def norm_mish(x: torch.Tensor, norm: Pair) -> torch.Tensor:
        """mish of x [..., C] normalised over C."""
        return F.mish(F.layer_norm(x, (x.shape[-1],), *norm))


def dit_ops(x: torch.Tensor) -> type[DitOps] | Any:
    """What is best for tensors like x; the kernels have no gradients."""
    return DitOps if torch.is_grad_enabled() else _ops(x.device.type)


@cache
def _ops(device: str) -> type[DitOps] | Any:
    if device == "cuda" and importlib.util.find_spec("triton") is not None:
        return importlib.import_module("sensorium.kernels.triton_dit").TritonDitOps
    return DitOps
