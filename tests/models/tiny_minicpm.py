"""config.json of very small MiniCPM models, for tests that need no reference data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sensorium.models import loader
from sensorium.models.minicpmo import Config, Model
from sensorium.types import MediaItem

VERSIONS = [("minicpmo", "4.5"), ("minicpmo", "2.6"), ("minicpmv", 4.5), ("minicpmv", 4.0), ("minicpmv", 2.6)]


def tiny_config(model_type: str = "minicpmo", version: Any = "4.5", **changes: Any) -> dict[str, Any]:
    config = {
        "model_type": model_type,
        "version": version,
        "architectures": ["MiniCPMO" if model_type == "minicpmo" else "MiniCPMV"],
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "vocab_size": 50,
        "max_position_embeddings": 4096,
        "drop_vision_last_layer": False,
        "vision_batch_size": 4,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
        },
        "audio_config": {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
    }
    return config | changes


def tiny_model(*args: Any, seed: int = 0, **changes: Any) -> Model:
    model = loader.build(Model, Config.from_hf(tiny_config(*args, **changes)), "cpu", torch.float32)
    # Ten times the usual spread, so that attention is far from uniform and mistakes show.
    loader.init_random_(model, seed, std=0.2)
    return model


def random_image(sizes: list[tuple[int, int]], groups: list[list[int]] | None = None, seed: int = 0) -> MediaItem:
    """Slices of the given patch grids; `groups` holds temporal ids."""
    rng = np.random.default_rng(seed)
    arrays = {
        f"source.{i}": rng.integers(0, 256, (14 * r, 14 * c, 3), dtype=np.uint8) for i, (r, c) in enumerate(sizes)
    }
    arrays["cuts"] = np.array([(i, 14 * c, 14 * r, 1, 1) for i, (r, c) in enumerate(sizes)], dtype=np.int32)
    if groups is not None:
        arrays["groups"] = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        arrays["temporal_ids"] = np.concatenate(groups).astype(np.int32)
    return MediaItem("image", b"", 64 * len(groups or sizes), arrays)


def random_sound(frames: list[int], rows: int, seed: int = 0) -> MediaItem:
    mel = np.random.default_rng(seed).standard_normal((80, sum(frames)), dtype=np.float32)
    return MediaItem("audio", b"", rows, {"mel": mel, "frames": np.array(frames, dtype=np.int32)})
