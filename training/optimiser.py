"""Muon for the matrices inside the blocks, AdamW for everything else. Weights live here in float32.

The model computes in bfloat16; `step` reads its gradients and writes the rounded weights back.
"""

from __future__ import annotations

import torch
from torch import nn

from sensorium.layers.linear import Linear


class Optimiser:
    """All master weights stand in one vector, those that AdamW moves first, so that a step is few kernels."""

    def __init__(self, module: nn.Module, decay: float = 0.05) -> None:
        self.decay = decay
        matrices = _matrices(module)
        trained = [p for p in module.parameters() if p.requires_grad]
        self.params = sorted(trained, key=lambda p: id(p) in matrices)
        self.num_plain = sum(p.numel() for p in self.params if id(p) not in matrices)
        self.master = torch.cat([p.detach().float().flatten() for p in self.params])
        self.moments = [torch.zeros_like(self.master[: self.num_plain]) for _ in range(2)]
        # Matrices of one shape are orthogonalised together: (number of the parameter, its rows).
        self.groups: dict[tuple[int, int], list[tuple[int, slice]]] = {}
        for number, p in enumerate(self.params):
            for rows in matrices.get(id(p), ()):
                self.groups.setdefault((rows.stop - rows.start, p.shape[1]), []).append((number, rows))
        device = self.master.device
        self.momentum = {
            shape: torch.zeros(len(members), *shape, device=device) for shape, members in self.groups.items()
        }
        self.weights = self._split(self.master)
        self.count = 0

    def _split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        parts = flat.split([p.numel() for p in self.params])
        return [part.view_as(p) for part, p in zip(parts, self.params, strict=True)]

    @torch.no_grad()
    def step(self, rate: float) -> torch.Tensor:
        """One update; returns the gradient's norm before it is clipped to 1."""
        flat = torch.cat([p.grad.flatten() for p in self.params]).float()
        norm = flat.norm()
        # A gradient that is not finite is dropped rather than spread.
        flat = (flat * (1.0 / norm.clamp(min=1.0))).nan_to_num(0.0, 0.0, 0.0)
        self.count += 1
        self._adam(flat[: self.num_plain], 0.7 * rate)
        self._muon(self._split(flat), rate)
        torch._foreach_copy_([p.data for p in self.params], self.weights)
        for p in self.params:
            p.grad = None
        return norm

    def _adam(self, gradient: torch.Tensor, rate: float, betas: tuple[float, float] = (0.9, 0.98)) -> None:
        first, second = self.moments
        first.lerp_(gradient, 1 - betas[0])
        second.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
        scale = (second / (1 - betas[1] ** self.count)).sqrt_().add_(1e-8)
        self.master[: self.num_plain].addcdiv_(first, scale, value=-rate / (1 - betas[0] ** self.count))

    def _muon(self, gradients: list[torch.Tensor], rate: float, beta: float = 0.95) -> None:
        for shape, members in self.groups.items():
            gradient = torch.stack([gradients[number][rows] for number, rows in members])
            momentum = self.momentum[shape]
            momentum.lerp_(gradient, 1 - beta)
            update = orthogonal(gradient.lerp(momentum, beta)) * (0.2 * max(shape) ** 0.5)
            targets = [self.weights[number][rows] for number, rows in members]
            torch._foreach_mul_(targets, 1 - rate * self.decay)
            torch._foreach_add_(targets, list(update.unbind()), alpha=-rate)


def orthogonal(x: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """[k, r, c] -> the nearest matrices with equal singular values, by Newton-Schulz (quintic), in bfloat16."""
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.float()
    return x.transpose(1, 2) if tall else x


def _matrices(module: nn.Module) -> dict[int, list[slice]]:
    """Parameter -> the row ranges that are matrices of their own: projections, fused ones taken apart."""
    found: dict[int, list[slice]] = {}
    for name, child in module.named_modules():
        if isinstance(child, Linear) and not name.endswith("decoder.head"):
            found[id(child.weight)] = list(child.pieces("weight").values())
        for own, parameter in child.named_parameters(recurse=False):
            if own == "in_proj_weight":
                third = len(parameter) // 3
                found[id(parameter)] = [slice(i * third, (i + 1) * third) for i in range(3)]
            elif own == "proj" and parameter.dim() == 2:
                found[id(parameter)] = [slice(0, len(parameter))]
    return found
