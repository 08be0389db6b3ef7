"""Steps of training that a CUDA graph can hold: Muon for matrices, Adam for the rest, rates read from the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from training.optimiser import orthogonal

_AHEAD = 2
"""Steps of a part that the device may still have before it."""


class GraphOptimiser:
    """params: (name, parameter). plain: names of tables and of what else is no map from inputs to outputs."""

    def __init__(self, params: Iterable[tuple[str, nn.Parameter]], plain: Callable[[str], bool], decay: float) -> None:
        self.decay = decay
        named = list(params)
        self.params = [p for _, p in named]
        muon = [p for n, p in named if p.dim() >= 2 and min(p.shape[0], p[0].numel()) >= 16 and not plain(n)]
        chosen = {id(p) for p in muon}
        self.plain = [p for p in self.params if id(p) not in chosen]
        device = self.params[0].device
        self.rate = torch.zeros((), device=device)
        self.norm = torch.zeros((), device=device)
        self._count = torch.zeros((), device=device)
        self._first = [torch.zeros_like(p) for p in self.plain]
        self._second = [torch.zeros_like(p) for p in self.plain]
        self._groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for p in muon:
            self._groups.setdefault((p.shape[0], p[0].numel()), []).append(p)
        self._momentum = {k: torch.zeros(len(ps), *k, device=device) for k, ps in self._groups.items()}

    @torch.no_grad()
    def step(self, loss: torch.Tensor) -> None:
        grads = dict(zip(self.params, torch.autograd.grad(loss, self.params), strict=True))
        self.norm.copy_(torch.stack(torch._foreach_norm(list(grads.values()))).norm())
        # A gradient that is not finite is dropped rather than spread.
        scale = torch.where(self.norm.isfinite(), 1.0 / self.norm.clamp(min=1.0), 0.0)
        grads = {p: (g * scale).nan_to_num(0.0, 0.0, 0.0) for p, g in grads.items()}
        self._count += 1
        self._adam([grads[p] for p in self.plain])
        for shape, members in self._groups.items():
            gradient = torch.stack([grads[p].reshape(shape) for p in members])
            momentum = self._momentum[shape]
            momentum.lerp_(gradient, 0.05)
            update = orthogonal(gradient.lerp(momentum, 0.95)) * (0.2 * max(shape) ** 0.5) * self.rate
            keep = 1 - self.rate * self.decay
            for p, u in zip(members, update, strict=True):
                p.copy_(p * keep - u.view_as(p))

    def _adam(self, grads: list[torch.Tensor], betas: tuple[float, float] = (0.9, 0.98)) -> None:
        torch._foreach_lerp_(self._first, grads, 1 - betas[0])
        torch._foreach_mul_(self._second, betas[1])
        torch._foreach_addcmul_(self._second, grads, grads, 1 - betas[1])
        share = torch._foreach_div(self._second, 1 - betas[1] ** self._count)
        torch._foreach_sqrt_(share)
        torch._foreach_add_(share, 1e-8)
        update = torch._foreach_div(self._first, share)
        torch._foreach_mul_(update, 0.7 * self.rate / (1 - betas[0] ** self._count))
        torch._foreach_sub_(self.plain, update)


class Part:
    """One model in training. compute() -> (loss to minimise, numbers to report); it draws its own batch."""

    def __init__(
        self,
        name: str,
        compute: Callable[[], tuple[torch.Tensor, list[torch.Tensor]]],
        optimiser: GraphOptimiser,
        peak: float,
        graph: bool,
    ) -> None:
        self.name, self.optimiser, self.peak = name, optimiser, peak
        self.steps = 0
        self._compute = compute
        self._graph: torch.cuda.CUDAGraph | None = None
        self._wants_graph = graph
        self._stream = torch.cuda.Stream() if graph else None
        self._done: list[torch.cuda.Event] = []
        self.numbers: torch.Tensor | None = None
        self._rates = torch.zeros(64).pin_memory() if graph else torch.zeros(64)

    def _once(self) -> None:
        loss, numbers = self._compute()
        self.optimiser.step(loss)
        seen = torch.stack([loss.detach(), *(n.detach().float() for n in numbers)])
        self.numbers = seen if self.numbers is None else self.numbers.mul_(0.98).add_(seen, alpha=0.02)

    def _record(self) -> None:
        assert self._stream is not None
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(3):
                self._once()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._once()
        torch.cuda.synchronize()

    def advance(self, share: float) -> bool:
        """Start a step if the last one is over. share: of the time that has passed."""
        if len(self._done) >= _AHEAD:
            if not self._done[0].query():
                return False
            del self._done[0]
        rate = self.peak * max(0.0, min(1.0, share / 0.03, (1 - share) / 0.5))
        slot = self.steps % len(self._rates)
        self._rates[slot] = rate
        self.steps += 1
        if not self._wants_graph:
            self.optimiser.rate.copy_(self._rates[slot])
            self._once()
            return True
        if self._graph is None:
            self._record()
        with torch.cuda.stream(self._stream):
            self.optimiser.rate.copy_(self._rates[slot], non_blocking=True)
            self._graph.replay()
            self._done.append(torch.cuda.Event())
            self._done[-1].record()
        return True
