"""The linear layer: the one place that knows how checkpoint matrices are stacked into one weight."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels import onednn


class Linear(nn.Module):
    """y = x W^T + b, with several checkpoint matrices ("parts") stacked along the output so that one product does all.

    parts: name of each part -> its output rows. bias: whether there is one, or the parts that have one; the bias of
    the others is zero.
    """

    def __init__(
        self, n_in: int, n_out: int, *, parts: Mapping[str, int] | None = None, bias: bool | Collection[str] = False
    ) -> None:
        super().__init__()
        self.parts = dict(parts or {"": n_out})
        if sum(self.parts.values()) != n_out:
            raise ValueError(f"parts {self.parts} do not add up to {n_out} rows")
        self.bias_parts = set(self.parts) if bias is True else set(bias or ())
        self.weight = nn.Parameter(torch.empty(n_out, n_in), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(n_out), requires_grad=False) if self.bias_parts else None
        self._packed: torch.Tensor | None = None
        self._instead: Callable[[torch.Tensor], torch.Tensor] | None = None

    def use(self, forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Compute through `forward` from now on. Only for weights that change no more."""
        self._instead = forward

    def pack(self) -> None:
        """Keep a second copy of the weight in the CPU's fastest layout. Only for weights that change no more."""
        if onednn.supports(self.weight):
            self._packed = onednn.pack(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._instead is not None:
            return self._instead(x)
        if self._packed is not None and x.shape[:-1].numel() >= onednn.MIN_ROWS:
            return onednn.linear(x, self._packed, self.bias)
        return F.linear(x, self.weight, self.bias)

    def pieces(self, name: str) -> dict[str, slice]:
        """Rows of parameter `name` that each checkpoint tensor fills."""
        rows, start = {}, 0
        for part, size in self.parts.items():
            if name == "weight" or part in self.bias_parts:
                rows[part] = slice(start, start + size)
            start += size
        return rows
