"""From a checkpoint to the model of its family."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sensorium.config import EngineConfig
from sensorium.kernels import select
from sensorium.models import loader
from sensorium.models.base import Model
from sensorium.models.registry import family_module, find_family


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
    if config.load_format == "dummy":
        model = loader.build(model_class, parsed, device, dtype)
        loader.init_random_(model, config.seed)
        return model
    return loader.load(model_class, parsed, folder, device, dtype, progress)


def outline(hf_config: Mapping[str, Any], config: EngineConfig) -> Model:
    """The model without memory behind its weights: for what it would need."""
    model_class, parsed = _parse(hf_config, config)
    with torch.device("meta"):
        return model_class(parsed)


def _parse(hf_config: Mapping[str, Any], config: EngineConfig) -> tuple[Any, Any]:
    """The family's Model class and its configuration."""
    config_module, model_module, _ = find_family(hf_config)
    parsed = family_module(config_module).Config.from_hf(
        hf_config,
        init_vision=config.init_vision and config.takes("image", "video"),
        init_audio=config.init_audio and config.takes("audio"),
        init_tts=config.init_tts,
    )
    return family_module(model_module).Model, parsed
