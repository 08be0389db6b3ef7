"""Tiny checkpoints behind MiniCPM's own calls, and the reference's conversations as its callers would write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minicpm.clips import write_clip
from PIL import Image
from safetensors.numpy import load_file

from sensorium.config import MediaLimits
from sensorium.minicpm import AutoModel


@pytest.fixture(scope="session")
def reference(golden_core: Path) -> Path:
    return golden_core / "minicpmo45"


@pytest.fixture(scope="module")
def omni(reference: Path) -> Iterator[Any]:
    # Decoders get all the time they want: machines that run tests are busy.
    limits = MediaLimits(decode_timeout_s=300.0, video_decode_timeout_s=300.0)
    options = {"trust_remote_code": True, "device_map": "cpu", "limits": limits}
    with AutoModel.from_pretrained(reference / "tiny", **options) as model:
        yield model.eval()


@pytest.fixture(scope="session")
def conversations(reference: Path) -> Any:
    """Name of a recorded case -> the case, with msgs (or a list of those) as chat() takes them."""
    waves = load_file(reference / "audio" / "waveforms_int16.safetensors")

    def part(item: dict[str, Any]) -> Any:
        if "text" in item:
            return item["text"]
        if "image" in item:
            with Image.open(reference / "images" / f"{item['image']}.png") as picture:
                return picture.convert("RGB")
        wave = item["audio"]["wave"]
        samples = np.tile(waves["wave_7.3s"], 5)[:496000] if wave == "wave_31.0s" else waves[wave]
        return samples[item["audio"]["start"] : item["audio"]["end"]].astype(np.float32) / 32768

    def messages(written: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"role": one["role"], "content": [part(item) for item in one["content"]]} for one in written]

    found = {}
    for case in json.loads((reference / "chat" / "chat.json").read_text())["cases"]:
        batch = case.get("messages_batch")
        case["msgs"] = messages(case["messages"]) if batch is None else [messages(one) for one in batch]
        found[case["name"]] = case
    return found


@pytest.fixture(scope="session")
def video(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("video") / "clip.mp4")
