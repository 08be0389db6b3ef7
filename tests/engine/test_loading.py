"""Loading refuses what it cannot do by name, before it reads a weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sensorium.config import EngineConfig
from sensorium.engine.loading import load, pick_dtype
from sensorium.errors import CheckpointError


@pytest.fixture
def tiny(golden_core: Path) -> Path:
    return golden_core / "minicpmo45" / "tiny"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"init_tts": True}, r"missing: tts\."),
        ({"device": "tpu"}, "tpu"),
        ({"device": "mps"}, "mps"),
        ({"model": "./nowhere"}, "nowhere"),
        ({"kv_cache_bytes": 1000}, "KV cache"),
    ],
)
def test_refusals_name_the_field(tiny: Path, changes: dict, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load(EngineConfig(**({"model": str(tiny)} | changes)))


@pytest.mark.parametrize("content", ["", "{", "[1]", json.dumps({"architectures": ["GPT9"]})])
def test_a_broken_config_is_an_error_of_ours(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError):
        load(EngineConfig(model=str(tmp_path)))


def test_trust_remote_code_executes_nothing(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name in ("modeling_minicpmo.py", "configuration_minicpmo.py"):
        (tmp_path / name).write_text("raise SystemExit('executed')")
    assert load(EngineConfig(model=str(tmp_path), trust_remote_code=True)).name == str(tmp_path)


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ({"init_audio": False}, ("image", "video")),
        ({"init_vision": False}, ("audio",)),
        ({}, ("image", "video", "audio")),
    ],
)
def test_towers_can_be_left_out(tiny: Path, init: dict, expected: tuple[str, ...]) -> None:
    assert load(EngineConfig(model=str(tiny), **init)).model.modalities == expected


def test_auto_dtype_follows_device_and_checkpoint() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype("auto", cpu, {"torch_dtype": "bfloat16"}) is torch.float32
    assert pick_dtype("auto", gpu, {"torch_dtype": "float32"}) is torch.bfloat16
    assert pick_dtype("auto", gpu, {"torch_dtype": "float16"}) is torch.float16
    assert pick_dtype("bfloat16", cpu, {}) is torch.bfloat16
