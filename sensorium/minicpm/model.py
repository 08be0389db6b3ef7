"""What all MiniCPM model objects share: a checkpoint, an engine that starts when it is first needed, and the calls by
which callers of transformers place and inspect a model.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.engine.loading import pick_dtype
from sensorium.errors import ConfigError, UnsupportedError
from sensorium.inspect import inspect
from sensorium.inspect.modules import as_modules
from sensorium.minicpm.tokenizer import MiniCPMProcessor, MiniCPMTokenizer


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that has been found but not loaded."""

    folder: Path
    hf_config: Mapping[str, Any]
    engine: EngineConfig
    init_tts: bool
    """Whether the model may be asked to speak."""


class MiniCPM:
    """A checkpoint and its engine. Calls may come from any thread. close() frees the device."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = MiniCPMTokenizer(checkpoint)
        self.processor = MiniCPMProcessor(self.tokenizer)
        self._engine = checkpoint.engine
        self._client: EngineClient | None = None
        self._stop: Any = None
        self._structure: nn.Module | None = None
        self._lock = threading.RLock()

    @property
    def name_or_path(self) -> str:
        return self._engine.model

    @property
    def version(self) -> tuple[int, ...]:
        """Of the family, such as (4, 5)."""
        return self.tokenizer.processor.variant.version

    @property
    def client(self) -> EngineClient:
        """The engine, which is started by the first call of this. Raises CheckpointError with what to do."""
        with self._lock:
            if self._client is None or not self._client.is_alive:
                self._client = EngineClient(self._engine)
                self._stop = weakref.finalize(self, self._client.close)
            return self._client

    def close(self) -> None:
        """Stop the engine and free the device; the next question starts it again."""
        with self._lock:
            if self._stop is not None:
                self._stop()
            self._client = self._stop = None

    def __enter__(self) -> MiniCPM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- where it runs ---------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where it runs, or will."""
        name = self._engine.device
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)

    @property
    def dtype(self) -> torch.dtype:
        """That it computes in, or will."""
        return pick_dtype(self._engine.dtype, self.device, dict(self.config))

    def eval(self) -> MiniCPM:
        """Itself: it cannot be trained."""
        return self

    def train(self, mode: bool = True) -> MiniCPM:
        if mode:
            raise UnsupportedError("train: this object answers and is not trained", param="train")
        return self

    def cuda(self, device: int | str | torch.device | None = None) -> MiniCPM:
        """Run on a GPU: the one it is on, or `device`."""
        if device is None and self.device.type == "cuda":
            return self
        return self.to("cuda" if device is None else device)

    def cpu(self) -> MiniCPM:
        return self.to("cpu")

    def to(self, *args: Any, device: Any = None, dtype: Any = None) -> MiniCPM:
        """Run on another device or in another dtype. An engine that runs already is stopped and started anew."""
        for value in args:
            device, dtype = (device, value) if isinstance(value, torch.dtype) else (value, dtype)
        changed = self._engine
        if device is not None:
            place = device_name(device, "device")
            if place.startswith("cuda") and not torch.cuda.is_available():
                raise ConfigError(
                    "torch sees no CUDA device; leave .cuda() out, or run `sensorium doctor`", param="device"
                )
            changed = replace(changed, device=place)
        if dtype is not None:
            if dtype not in (torch.float32, torch.float16, torch.bfloat16):
                raise ConfigError(f"dtype: {dtype} is none of float32, float16, bfloat16", param="dtype")
            changed = replace(changed, dtype=str(dtype).removeprefix("torch."))
        self._change(changed)
        return self

    def configure(self, **settings: Any) -> None:
        """Other settings of the engine: fields of EngineConfig. One that runs with others starts anew."""
        self._change(replace(self._engine, **settings))

    def _change(self, changed: EngineConfig) -> None:
        with self._lock:
            if changed != self._engine:
                self.close()
            self._engine = changed

    def half(self) -> MiniCPM:
        return self.to(torch.float16)

    def bfloat16(self) -> MiniCPM:
        return self.to(torch.bfloat16)

    def float(self) -> MiniCPM:
        return self.to(torch.float32)

    # ---- what it is made of ----------------------------------------------------------------------------------------

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json of the checkpoint."""
        return self.checkpoint.hf_config

    @property
    def structure(self) -> nn.Module:
        """The published modules by their names and types, with parameters that have shapes and no values."""
        if self._structure is None:
            self._structure = as_modules(inspect(self.checkpoint.folder).root)
        return self._structure

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """As nn.Module.named_modules, of `structure`."""
        return self.structure.named_modules()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As nn.Module.named_parameters, of `structure`."""
        return self.structure.named_parameters()

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.structure.parameters()

    def __str__(self) -> str:
        return str(self.structure)


def device_name(device: Any, param: str) -> str:
    """One device, as the engine names it, from a string, a torch.device, a number, or {"": device}."""
    if isinstance(device, Mapping):
        places = set(map(str, device.values()))
        if len(places) != 1:
            raise ConfigError(
                f"{param}: a model runs on one device, not on {', '.join(sorted(places)) or 'none'}", param=param
            )
        (device,) = places
    name = str(device)
    if name.isdigit():
        return f"cuda:{name}"
    if name in ("balanced", "balanced_low_0", "sequential"):
        raise ConfigError(f"{param}: {name!r} spreads a model over devices; use one, such as 'cuda:0'", param=param)
    return name
