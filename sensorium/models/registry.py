"""Which family loads a checkpoint: one line per architecture name of config.json. No torch: see build for models."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensorium.errors import CheckpointError
from sensorium.models.base import Processor

# architecture -> modules of this package that hold its Config, its Model and its Processor. Only the second may
# import torch.
FAMILIES = {
    "MiniCPMO": ("minicpm_config", "minicpmo", "minicpm_processor"),
    "MiniCPMV": ("minicpm_config", "minicpmo", "minicpm_processor"),
    "LlavaForConditionalGeneration": ("llava_config", "llava", "llava_processor"),
    "Qwen2VLForConditionalGeneration": ("qwen2_vl_config", "qwen2_vl", "qwen2_vl_processor"),
    "Qwen2_5_VLForConditionalGeneration": ("qwen2_vl_config", "qwen2_vl", "qwen2_vl_processor"),
}


def load_processor(folder: Path, hf_config: Mapping[str, Any]) -> Processor:
    """The family's processor. Raises CheckpointError with what to do."""
    config, _, processor = find_family(hf_config)
    loaded: Processor = family_module(processor).Processor(folder, family_module(config).Config.from_hf(hf_config))
    loaded.origin = (folder, hf_config)
    loaded.scales_on_device = False
    return loaded


def find_family(hf_config: Mapping[str, Any]) -> tuple[str, str, str]:
    """The line of FAMILIES for a checkpoint."""
    names = hf_config.get("architectures") or []
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise CheckpointError(
        f"architecture {', '.join(names) or 'unknown'} is not supported; supported: {', '.join(FAMILIES)}"
    )


def family_module(name: str) -> Any:
    return importlib.import_module(f"sensorium.models.{name}")
