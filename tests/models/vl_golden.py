"""Stored cases of the tiny picture and video checkpoints, and ways to run them through the engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.kernels.reference import PackedPlan
from sensorium.media import image
from sensorium.messages import read_media
from sensorium.types import ChatOptions, Finished, Media, MediaItem, ModelInputs, Prompt, SamplingParams

ROOT = Path(__file__).resolve().parents[3] / "shared" / "golden" / "models"
needs_golden = pytest.mark.skipif(not ROOT.is_dir(), reason="the reference data (../shared/golden) are not here")
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


class Family:
    """One folder of the reference data."""

    def __init__(self, name: str) -> None:
        self.folder = ROOT / name
        self.cases: dict[str, dict[str, Any]] = {}
        self.tensors: Mapping[str, np.ndarray] = {}
        if self.folder.is_dir():
            cases = json.loads((self.folder / "cases.json").read_text())["cases"]
            self.cases = {case["name"]: case for case in cases if case["name"] != "batch"}
            self.tensors = load_file(self.folder / "cases.safetensors")

    def client(self, **changes: Any) -> EngineClient:
        return EngineClient(EngineConfig(model=str(self.folder), **changes))

    def tensor(self, case: str, name: str) -> np.ndarray:
        return self.tensors[f"{case}/{name}"]

    def media(self, case: str, fps: float = 2.0) -> list[Media]:
        """The case's pictures and films, in the order of its prompt."""
        found: list[Any] = []
        for modality, count in sorted(self.cases[case]["modalities"].items()):
            for number in range(count):
                data = self.tensor(case, f"{modality}{number}")
                found.append(image.from_array(data) if modality == "image" else read_media("video", (data, fps), ""))
        return found

    def prompt(self, client: EngineClient, case: str, options: ChatOptions | None = None) -> Prompt:
        return client.prepare_raw(self.cases[case]["prompt"], self.media(case), options)

    def greedy(self, case: str) -> list[int]:
        return self.cases[case]["greedy"][0]

    def check_logits(self, client: EngineClient, case: str, prompt: Prompt) -> None:
        """One pass without a cache, media rows in place."""
        model: Any = client.loaded.model
        with torch.inference_mode():
            x = model.embed(torch.tensor(prompt.ids))
            encoded = encode(model, prompt.media)
            for span in prompt.spans:
                x[span.start : span.stop] = encoded[span.media][span.row : span.row + span.length]
            positions = torch.arange(len(x)) if prompt.positions is None else torch.from_numpy(prompt.positions)
            logits = model.logits(model(x, ModelInputs(positions, PackedPlan(1))))
        stored = torch.from_numpy(self.tensor(case, "logits")[0])
        torch.testing.assert_close(logits[self.cases[case]["logits_from"] :], stored, rtol=1e-3, atol=1e-3)


def encode(model: Any, items: Sequence[MediaItem]) -> list[torch.Tensor]:
    """Rows of each item, modality by modality as the engine asks for them."""
    rows: dict[int, torch.Tensor] = {}
    for modality in sorted({item.modality for item in items}):
        numbers = [number for number, item in enumerate(items) if item.modality == modality]
        rows |= zip(numbers, model.encode(modality, [items[number] for number in numbers]), strict=True)
    return [rows[number] for number in range(len(items))]


def normalised(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return (arrays[name].astype(np.float32) / 255 - arrays["mean"]) / arrays["std"]


def slabs(item: MediaItem) -> list[torch.Tensor]:
    """Normalised frames of a picture, or of each two frames of a video."""
    frames = normalised(item.arrays, "frames")
    return [torch.from_numpy(frames[start : start + 2]) for start in range(0, len(frames), 2)]


def axes(prompt: Prompt) -> np.ndarray:
    assert prompt.positions is not None
    return prompt.positions


def generate(client: EngineClient, *prompts: Prompt) -> list[list[int]]:
    """Tokens of prompts that run together."""
    streams = [client.submit(prompt, GREEDY) for prompt in prompts]
    tokens = []
    for stream in streams:
        events = list(stream)
        assert isinstance(events[-1], Finished)
        tokens.append([token for event in events[:-1] for token in getattr(event, "token_ids", ())])
    return tokens
