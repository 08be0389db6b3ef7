"""Checkpoints of well-known shapes with random weights, written when they are measured: no download, no licence."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sensorium.bench.shapes import SHAPES
from sensorium.config import EngineConfig
from sensorium.engine.checkpoint import resolve_folder
from sensorium.models import loader
from sensorium.models.minicpmo import Config, Model

_QWEN3 = {
    "model_type": "minicpmo",
    "architectures": ["MiniCPMO"],
    "version": "4.5",
    "init_vision": False,
    "init_audio": False,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
}
# What makes a folder of weights one that can be asked: any tokenizer does, as prompts and answers are random.
_TEXTS = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "preprocessor_config.json")


@contextmanager
def checkpoint(config: EngineConfig, preset: str | None) -> Iterator[EngineConfig]:
    """The configuration with `model` naming a temporary checkpoint of that shape; without a preset, as it is."""
    if preset is None:
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="sensorium-") as name:
        folder = Path(name) / preset
        write(preset, folder)
        yield replace(config, model=str(folder))


def source(preset: str, **changes: int) -> dict[str, Any]:
    """Its config.json."""
    width, layers, heads, intermediate, tied = SHAPES[preset]
    return _QWEN3 | {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "tie_word_embeddings": tied,
        **changes,
    }


def write(preset: str, folder: Path, device: str = "cpu", **changes: int) -> Model:
    """Text only, bfloat16, a few GB; returns what was written. changes: fields of config.json, such as fewer layers."""
    config = source(preset, **changes)
    model = loader.build(Model, Config.from_hf(config), device, torch.bfloat16)
    # Deep models of tiny weights answer every prompt alike; these spread their logits as trained ones do.
    loader.init_random_(model, seed=0, std=0.05)
    loader.save_checkpoint(model, folder)
    packaged = resolve_folder("")
    for text in _TEXTS:
        shutil.copyfile(packaged / text, folder / text)
    return model
