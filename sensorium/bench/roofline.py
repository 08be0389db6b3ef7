"""The least time a device could take: what it reads and multiplies at best, measured here, against what a step needs.

B sequences · C tokens of context · E width · V vocabulary
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sensorium.layers.linear import Linear
from sensorium.layers.mlp import Mlp

# Larger than any cache, and long enough that starting it costs nothing.
_READ_BYTES = {"cpu": 256 << 20, "cuda": 4 << 30}
_SQUARE = {"cpu": 1024, "cuda": 8192}
_RUNS = 7
_PRODUCTS = (Linear, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def machine() -> dict[str, Any]:
    """What a number must be read with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best that this device did just now."""

    bytes_per_s: float
    flops_per_s: float

    def seconds(self, work: Work) -> float:
        """The least time for some work: reading and multiplying may overlap."""
        return max(work.bytes / self.bytes_per_s, work.flops / self.flops_per_s)

    def share(self, work: Work, seconds: float) -> float:
        return self.seconds(work) / seconds if seconds > 0 else 0.0

    def facts(self) -> dict[str, float]:
        return {"GB_per_s": self.bytes_per_s / 1e9, "TFLOP_per_s": self.flops_per_s / 1e12}


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes that must be read, and additions and multiplications of matrix products."""

    bytes: float
    flops: float


@torch.inference_mode()
def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Sum a large array, and multiply two squares of `dtype`; the best of a few runs each."""
    kind = device.type
    words = torch.zeros(_READ_BYTES[kind] // 4, dtype=torch.float32, device=device)
    side = _SQUARE[kind]
    a, b = (torch.zeros(side, side, dtype=dtype, device=device) for _ in range(2))
    reading = _best(lambda: words.sum(), device)
    multiplying = _best(lambda: a @ b, device)
    return Ceilings(words.numel() * 4 / reading, 2 * side**3 / multiplying)


def _best(call: Callable[[], object], device: torch.device) -> float:
    times: list[float] = []
    for _ in range(_RUNS):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a decoder reads and multiplies. Numbers are weights, not bytes, unless the name says otherwise."""

    layers: int
    head: int
    weight_bytes: int
    """Of the layers and the head together, as they are kept for computing."""
    kv_token_bytes: int
    attention: int
    """Products per query and key, of all layers: two for each number of all query heads."""

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype) -> Sizes:
        """model: a TextModel, loaded or on the meta device."""
        decoder = model.decoder
        linears = [module for module in decoder.layers.modules() if isinstance(module, Linear)]
        layers = sum(linear.weight.numel() for linear in linears)
        head = (decoder.embedding if decoder.head is None else decoder.head).weight.numel()
        heads, kv_heads = decoder.layers[0].attention.heads
        fused = decoder._fused
        held = (layers + head) * dtype.itemsize if fused is None else fused.weight_bytes
        kv = 2 * model.num_layers * kv_heads * model.head_dim * dtype.itemsize
        return cls(layers, head, held, kv, 2 * model.num_layers * heads * model.head_dim)

    def decode(self, contexts: Sequence[int]) -> Work:
        """One step of sequences with so many tokens each."""
        count, tokens = len(contexts), sum(contexts)
        flops = 2 * count * (self.layers + self.head) + 2 * tokens * self.attention
        return Work(self.weight_bytes + tokens * self.kv_token_bytes, flops)

    def prefill(self, lengths: Sequence[int]) -> Work:
        """Prompts until their first token, computed together."""
        pairs = sum(n * (n + 1) / 2 for n in lengths)
        flops = 2 * sum(lengths) * self.layers + 2 * len(lengths) * self.head + 2 * pairs * self.attention
        return Work(self.weight_bytes, flops)

    def generate(self, lengths: Sequence[int], wanted: Sequence[int]) -> Work:
        """Prompts and their answers, all at once: at least as many steps as the longest answer has tokens."""
        begin = self.prefill(lengths)
        steps = max(wanted, default=1) - 1
        flops, read = begin.flops, begin.bytes + steps * self.weight_bytes
        for length, count in zip(lengths, wanted, strict=True):
            keys = sum(range(length + 1, length + count))
            flops += 2 * (count - 1) * (self.layers + self.head) + 2 * keys * self.attention
            read += keys * self.kv_token_bytes
        return Work(read, flops)


class Products:
    """Counts the arithmetic of linear layers and convolutions while encoders run. Use as a context manager."""

    def __init__(self, model: nn.Module) -> None:
        self.flops = 0
        self.weights: dict[int, int] = {}
        self._model = model
        self._hooks: list[Any] = []

    def __enter__(self) -> Products:
        inside = {
            id(layer) for module in self._model.modules() if isinstance(module, Mlp) for layer in module.children()
        }
        for module in self._model.modules():
            if isinstance(module, Mlp):
                # It may do both of its products in one kernel, past its layers.
                self._hooks.append(module.register_forward_hook(self._count_mlp))
            elif id(module) not in inside and isinstance(module, _PRODUCTS):
                self._hooks.append(module.register_forward_hook(self._count))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def work(self) -> Work:
        return Work(sum(self.weights.values()), self.flops)

    def _count_mlp(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        rows = output.numel() // output.shape[-1]
        for layer in (module.fc1, module.fc2):
            self._add(layer.weight, rows * layer.weight.shape[0])

    def _count(self, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._add(module.weight, output.numel())

    def _add(self, weight: torch.Tensor, outputs: int) -> None:
        self.weights[id(weight)] = weight.numel() * weight.element_size()
        # Each output is the product of one row of the weight, whatever the layer slides it over.
        self.flops += 2 * outputs * (weight.numel() // weight.shape[0])
