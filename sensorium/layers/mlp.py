"""The two feed-forward blocks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels import reference as ops
from sensorium.layers.linear import Linear


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), with biases. approximate: "tanh" (SigLIP) or "none" (Whisper)."""

    def __init__(self, width: int, hidden: int, approximate: Literal["none", "tanh"]) -> None:
        super().__init__()
        self.approximate = approximate
        self.fc1 = Linear(width, hidden, bias=True)
        self.fc2 = Linear(hidden, width, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, parts={"gate": hidden, "up": hidden})
        self.down = Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(ops.act_mul(self.gate_up(x)))
