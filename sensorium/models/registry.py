"""Which family loads a checkpoint: one line per architecture name of config.json."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sensorium.config import EngineConfig
from sensorium.errors import CheckpointError
from sensorium.kernels import select
from sensorium.models import loader
from sensorium.models.base import Model, Processor

# architecture -> (Model, Processor), each "module:Class" of this package. Config stands beside Model.
FAMILIES = {
    "MiniCPMO": ("minicpmo:Model", "minicpm_processor:Processor"),
    "MiniCPMV": ("minicpmo:Model", "minicpm_processor:Processor"),
    "LlavaForConditionalGeneration": ("llava:Model", "llava_processor:Processor"),
    "Qwen2VLForConditionalGeneration": ("qwen2_vl:Model", "qwen2_vl_processor:Processor"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_vl:Model", "qwen2_vl_processor:Processor"),
}


def load_model(
    folder: Path,
    hf_config: Mapping[str, Any],
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    progress: loader.Progress | None = None,
) -> Model:
    """Build the family's model and read its weights. Raises CheckpointError with what to do."""
    select.prefer_any_shape(device)
    model_class, parsed = _parse(hf_config, config)
    return loader.load(model_class, parsed, folder, device, dtype, progress)


def outline(hf_config: Mapping[str, Any], config: EngineConfig) -> Model:
    """The model without memory behind its weights: for what it would need."""
    model_class, parsed = _parse(hf_config, config)
    with torch.device("meta"):
        return model_class(parsed)


def _parse(hf_config: Mapping[str, Any], config: EngineConfig) -> tuple[Any, Any]:
    """The family's Model class and its configuration."""
    module, name = _family(hf_config)[0].split(":")
    family = importlib.import_module(f"sensorium.models.{module}")
    parsed = family.Config.from_hf(hf_config, init_vision=config.init_vision, init_audio=config.init_audio)
    return getattr(family, name), parsed


def load_processor(folder: Path, hf_config: Mapping[str, Any]) -> Processor:
    model_name, processor_name = _family(hf_config)
    parsed = importlib.import_module(f"sensorium.models.{model_name.split(':')[0]}").Config.from_hf(hf_config)
    module, name = processor_name.split(":")
    return getattr(importlib.import_module(f"sensorium.models.{module}"), name)(folder, parsed)


def _family(hf_config: Mapping[str, Any]) -> tuple[str, str]:
    names = hf_config.get("architectures") or []
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise CheckpointError(
        f"architecture {', '.join(names) or 'unknown'} is not supported; supported: {', '.join(FAMILIES)}"
    )
