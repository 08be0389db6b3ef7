"""Tensors of one codec file, each taken once under its checkpoint name and checked against the shape it must have."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import torch

from sensorium.errors import CheckpointError

Shape = Sequence[int | None]
"""None stands for any length."""
MAX_LISTED = 8
_NORMS = ((".parametrizations.weight.original0", ".parametrizations.weight.original1"), (".weight_g", ".weight_v"))


class Weights:
    """What is taken arrives on `device` in `dtype`. `finish` refuses a file with tensors nobody asked for."""

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        file: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.file, self.device, self.dtype = file, torch.device(device), dtype
        self._left = fuse_weight_norm(tensors, file)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._find(name).shape)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def count(self, pattern: str) -> int:
        """How many i = 0, 1, ... name a tensor in pattern.format(i)."""
        n = 0
        while pattern.format(n) in self._left:
            n += 1
        return n

    def take(self, name: str, *shape: int | None) -> torch.Tensor:
        tensor = self._find(name)
        if len(shape) != tensor.dim() or any(
            want not in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        ):
            wanted = ", ".join("any" if n is None else str(n) for n in shape)
            raise CheckpointError(f"{self.file}: tensor {name} has shape {list(tensor.shape)}, not [{wanted}]")
        del self._left[name]
        return tensor.to(self.device, self.dtype).contiguous()

    def finish(self) -> None:
        if self._left:
            listed = ", ".join(sorted(self._left)[:MAX_LISTED])
            more = f" and {len(self._left) - MAX_LISTED} more" if len(self._left) > MAX_LISTED else ""
            raise CheckpointError(f"{self.file} holds tensors that this codec does not have: {listed}{more}")

    def _find(self, name: str) -> torch.Tensor:
        if name not in self._left:
            raise CheckpointError(f"{self.file}: tensor {name} is missing")
        return self._left[name]


def fuse_weight_norm(tensors: Mapping[str, torch.Tensor], file: str) -> dict[str, torch.Tensor]:
    """Pairs of magnitude g and direction v to the weight g · v / ||v||, the norm taken over all axes but the first."""
    fused = dict(tensors)
    for name in tensors:
        for g_ending, v_ending in _NORMS:
            if not name.endswith(v_ending):
                continue
            stem = name.removesuffix(v_ending)
            if (g := fused.pop(stem + g_ending, None)) is None:
                raise CheckpointError(f"{file}: tensor {stem}{g_ending} is missing")
            v = fused.pop(name)
            axes = list(range(1, v.dim()))
            if g.numel() != len(v):
                raise CheckpointError(f"{file}: tensor {stem}{g_ending} has shape {list(g.shape)}, not [{len(v)}, ...]")
            norm = torch.linalg.vector_norm(v.float(), dim=axes, keepdim=True)
            fused[stem + ".weight"] = v.float() * (g.float().reshape(norm.shape) / norm)
    return fused


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A torch.save dictionary of tensors. Nothing in the file is executed."""
    if not path.is_file():
        raise CheckpointError(f"the codec folder {path.parent} has no {path.name}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise CheckpointError(f"{path.name} cannot be read as a dictionary of tensors: {error}"[:500]) from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise CheckpointError(f"{path.name} is not a dictionary of tensors")
    return found
