"""Checkpoints to parameters and back: safetensors only, each tensor read once and copied where it belongs.

A model says how its parameters are called in a checkpoint (`renames`) and what it leaves unread (`ignored`); its
layers say which rows of a parameter a checkpoint tensor fills (`Linear.pieces`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sensorium.errors import CheckpointError
from sensorium.layers.linear import Linear

Progress = Callable[[int, int, str], None]
"""Called after each tensor with bytes read so far, bytes in all, and the tensor's name."""
Rules = tuple[tuple[str, str], ...]

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
MAX_LISTED = 12


class Checkpointed(Protocol):
    """What the loader reads from a model, beside the nn.Module it is."""

    @property
    def config(self) -> Any:
        """Has `source`, the config.json it was made from."""
        ...

    @property
    def renames(self) -> Mapping[str, tuple[str, Rules]]:
        """Prefix of ours -> (prefix in checkpoints, rules for the rest: regular expression, replacement)."""
        ...

    @property
    def ignored(self) -> tuple[str, ...]:
        """Checkpoint prefixes that may be present and are not read."""
        ...

    # A family whose checkpoints exist in several layouts also has `aliases: Rules`, from other names to those above.
    # A layer that computes with other numbers than checkpoints hold has `after_load` and `before_save`.

    def modules(self) -> Iterator[nn.Module]: ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...

    def eval(self) -> Any: ...


M = TypeVar("M", bound=Checkpointed)


@dataclass(frozen=True, slots=True)
class Target:
    """Where a checkpoint tensor goes: rows of one parameter, or (rows None) all of it."""

    module: nn.Module
    name: str
    rows: slice | None

    @property
    def tensor(self) -> torch.Tensor:
        parameter = self.module.get_parameter(self.name).detach()
        return parameter if self.rows is None else parameter[self.rows]


def targets(model: Checkpointed) -> dict[str, Target]:
    """Every tensor name a checkpoint of this model has."""
    found = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            full = f"{path}.{name}" if path else name
            for piece, rows in (module.pieces(name) if isinstance(module, Linear) else {"": None}).items():
                found[_checkpoint_name(full, piece, model.renames)] = Target(module, name, rows)
    return found


def _checkpoint_name(path: str, piece: str, renames: Mapping[str, tuple[str, Rules]]) -> str:
    for ours, (theirs, rules) in renames.items():
        if path.startswith(ours):
            rest = path.removeprefix(ours)
            for pattern, replacement in rules:
                rest = re.sub(pattern, replacement, rest)
            return theirs + rest.replace("{piece}", piece)
    return path.replace("{piece}", piece)


# ---- building -----------------------------------------------------------------------------------------------------


def build(model_class: Callable[[Any], M], config: Any, device: torch.device | str, dtype: torch.dtype) -> M:
    """A model with allocated but unset weights."""
    with torch.device("meta"):
        model = model_class(config)
    return allocate(model, torch.device(device), dtype)


def allocate(model: M, device: torch.device, dtype: torch.dtype) -> M:
    """Replace meta parameters by memory on the device, once, and move computed tables there (they stay float32)."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                # Vectors start at zero: the bias of a fused projection may have rows that no checkpoint fills.
                make = torch.zeros if parameter.dim() == 1 else torch.empty
                new = make(parameter.shape, dtype=dtype, device=device)
                module._parameters[name] = nn.Parameter(new, requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    return model.eval()


@torch.no_grad()
def init_random_(model: nn.Module, seed: int, std: float = 0.02) -> None:
    """Random weights in place: norms 1, biases 0, everything else normal. For training from nothing and benchmarks."""
    generators: dict[torch.device, torch.Generator] = {}
    for path, parameter in model.named_parameters():
        if "norm" in path or ".ln_" in path:
            parameter.fill_(0.0 if path.endswith("bias") else 1.0)
        elif path.endswith("bias"):
            parameter.zero_()
        else:
            device = parameter.device
            generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
            parameter.normal_(0.0, std, generator=generator)


# ---- reading ------------------------------------------------------------------------------------------------------


def load(
    model_class: Callable[[Any], M],
    config: Any,
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> M:
    """Build the model and fill it from a folder. Nothing is allocated before names and shapes are known to fit."""
    with torch.device("meta"):
        model = model_class(config)
    found = tensor_files(folder)
    stored = {_canonical(name, getattr(model, "aliases", ())): name for name in found}
    files = {name: found[original] for name, original in stored.items()}
    wanted = targets(model)
    shapes = {name: tuple(target.tensor.shape) for name, target in wanted.items()}
    total = _check(files, stored, shapes, model.ignored, folder)
    allocate(model, torch.device(device), dtype)
    done = 0
    for file, names in _by_file(files, wanted).items():
        with _open(file) as tensors:
            for name in names:
                tensor = tensors.get_tensor(stored[name])
                wanted[name].tensor.copy_(tensor)
                done += tensor.nbytes
                if progress is not None:
                    progress(done, total, name)
    _tell(model, "after_load")
    return model


def _tell(model: Checkpointed, event: str) -> None:
    for module in model.modules():
        if hook := getattr(module, event, None):
            hook()


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file, for a single file or an index with shards."""
    if (folder / INDEX).is_file():
        try:
            names = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{INDEX} in {folder} cannot be read: {error!r}") from error
        lost = sorted({file for file in names.values() if not (folder / file).is_file()})
        if lost:
            raise CheckpointError(f"{folder} lacks {_listed(lost)}, named in {INDEX}; is the download complete?")
        return {name: folder / file for name, file in names.items()}
    # What else lies in a folder (other layouts of the same weights, adapters) is not the model.
    files = [folder / WHOLE] if (folder / WHOLE).is_file() else sorted(folder.glob("*.safetensors"))
    if not files:
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
            raise CheckpointError(
                f"{folder} holds pickled weights (.bin, .pt), which can run code when read; convert them to safetensors"
            )
        raise CheckpointError(f"{folder} has no *.safetensors file")
    found = {}
    for file in files:
        with _open(file) as tensors:
            found.update(dict.fromkeys(tensors.keys(), file))
    return found


def _canonical(name: str, aliases: Rules) -> str:
    """The name that a tensor has in the layout of the model's `renames`."""
    for pattern, replacement in aliases:
        name = re.sub(pattern, replacement, name)
    return name


def _check(
    files: Mapping[str, Path],
    stored: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    ignored: tuple[str, ...],
    folder: Path,
) -> int:
    """Bytes that will be read. Raises CheckpointError when names or shapes do not fit the model."""
    problems = []
    if missing := [name for name in shapes if name not in files]:
        problems.append(f"missing: {_listed(missing)}")
    if unexpected := [name for name in files if name not in shapes and not name.startswith(ignored)]:
        problems.append(f"unexpected: {_listed(unexpected)}")
    misshapen, total = [], 0
    for file, names in _by_file(files, shapes).items():
        with _open(file) as tensors:
            for name in names:
                part = tensors.get_slice(stored[name])
                shape = tuple(part.get_shape())
                if shape != shapes[name]:
                    misshapen.append(f"{name} is {list(shape)}, should be {list(shapes[name])}")
                total += _num_bytes(shape, part.get_dtype())
    if misshapen:
        problems.append(f"wrong shape: {_listed(misshapen)}")
    if problems:
        raise CheckpointError(f"the weights in {folder} do not fit its config.json; " + "; ".join(problems))
    return total


def _num_bytes(shape: tuple[int, ...], dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return torch.Size(shape).numel() * (int(digits[0]) // 8 if digits else 1)


def _by_file(files: Mapping[str, Path], wanted: Mapping[str, Any]) -> dict[Path, list[str]]:
    grouped: dict[Path, list[str]] = {}
    for name in wanted:
        if name in files:
            grouped.setdefault(files[name], []).append(name)
    return dict(sorted(grouped.items()))


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); is the download complete?") from error


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


# ---- writing ------------------------------------------------------------------------------------------------------


def export_tensors(model: Checkpointed) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of every piece as a checkpoint holds them, fused projections taken apart."""
    _tell(model, "before_save")
    for name, target in targets(model).items():
        yield name, target.tensor


def save_checkpoint(model: Checkpointed, folder: Path, *, max_shard_bytes: int = 5 << 30) -> None:
    """Write the weights (several files and an index where they are large) and the config.json they were built from."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    filled = 0
    for name, tensor in export_tensors(model):
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor.contiguous()
        filled += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = WHOLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}, indent=1))
    (folder / "config.json").write_text(json.dumps(dict(model.config.source), indent=1, ensure_ascii=False))
