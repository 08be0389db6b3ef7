"""Tiny checkpoints behind MiniCPM's own calls, and the reference's conversations as its callers would write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sensorium.minicpm import AutoModel


@pytest.fixture(scope="session")
def reference(golden_core: Path) -> Path:
    return golden_core / "minicpmo45"


@pytest.fixture(scope="module")
def omni(reference: Path) -> Iterator[Any]:
    with AutoModel.from_pretrained(reference / "tiny", trust_remote_code=True, device_map="cpu") as model:
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
    """Three seconds of ten frames each, with a tone."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=16000, layout="mono")
        for index in range(30):
            pixels = np.full((48, 64, 3), 8 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        tone = (np.sin(np.arange(48_000) / 20) / 4).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(sound.encode(frame))
        for one in (stream, sound):
            container.mux(one.encode(None))
    return path
