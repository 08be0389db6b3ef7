"""The two feed-forward blocks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels import reference as ops
from sensorium.layers.linear import Linear

Gelu = Literal["none", "tanh", "quick"]
"""How gelu is computed: exactly, by its tanh approximation, or as x * sigmoid(1.702 x)."""


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), with biases. approximate: "tanh" (SigLIP), "none" (Whisper) or "quick" (CLIP).

    n_out: width of what comes out, where it is not that of what goes in.
    """

    def __init__(self, width: int, hidden: int, approximate: Gelu, n_out: int | None = None) -> None:
        super().__init__()
        self.approximate: Gelu = approximate
        self.fc1 = Linear(width, hidden, bias=True)
        self.fc2 = Linear(hidden, n_out or width, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.approximate == "tanh" and x.is_cuda and x.dtype != torch.float32:
            # One kernel of the library does both; its result is as exact as two roundings to 16 bits.
            assert self.fc1.bias is not None
            fused = torch._addmm_activation  # pyright: ignore - torch has it but does not export it
            hidden = fused(self.fc1.bias, x.flatten(0, -2), self.fc1.weight.t(), use_gelu=True)
            return self.fc2(hidden.view(*x.shape[:-1], -1))
        x = self.fc1(x)
        if self.approximate == "quick":
            return self.fc2(x * torch.sigmoid(1.702 * x))
        return self.fc2(F.gelu(x, approximate=self.approximate))


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one product. n_out: as in Mlp."""

    def __init__(self, width: int, hidden: int, bias: bool = False, n_out: int | None = None) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, parts={"gate": hidden, "up": hidden}, bias=bias)
        self.down = Linear(hidden, n_out or width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(ops.act_mul(self.gate_up(x)))
