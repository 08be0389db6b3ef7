"""The reference's stored inputs and outputs, as items and prompts of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sensorium.kernels.reference import PackedPlan, PagedPlan
from sensorium.models import loader
from sensorium.models.minicpm_mel import log_mel, split_clips
from sensorium.models.minicpm_pixels import slice_patches
from sensorium.models.minicpm_slices import picture_arrays, plan_slices, scaled
from sensorium.models.minicpmo import Config, Model
from sensorium.types import MediaItem, ModelInputs

ROOT = Path(__file__).resolve().parents[3] / "shared" / "golden" / "minicpmo45"
needs_golden = pytest.mark.skipif(not ROOT.is_dir(), reason="the reference data (../shared/golden) are not here")


def read_json(name: str) -> Any:
    return json.loads((ROOT / name).read_text("utf-8"))


def read_tensors(name: str) -> dict[str, np.ndarray]:
    return load_file(ROOT / name)


def load_tiny(folder: str, **changes: Any) -> Model:
    """A tiny reference checkpoint, with some fields of its config.json replaced."""
    config = Config.from_hf(read_json(f"{folder}/config.json") | changes)
    return loader.load(Model, config, ROOT / folder, "cpu", torch.float32)


def picture(name: str, shapes: dict[str, dict[str, int]]) -> np.ndarray:
    """[H, W, 3] uint8 by the integer formula of images.json."""
    w, h, s = (shapes[name][key] for key in ("width", "height", "seed"))
    y, x = np.mgrid[0:h, 0:w]
    check = ((x // 24 + y // 20) % 2) * 64
    red = ((x * 255 // max(w - 1, 1) + 13 * s) % 256 + check) % 256
    green = (y * 255 // max(h - 1, 1) + 29 * s) % 256
    blue = ((x * x + y * y) // (97 + s) + 7 * s) % 256
    return np.stack((red, green, blue), -1).astype(np.uint8)


def clip(case: str, start: int, end: int) -> np.ndarray:
    """Samples of a stored recording, float32; the longest is a tiling of another."""
    waves = read_tensors("audio/waveforms_int16.safetensors")
    wave = np.tile(waves["wave_7.3s"], 5)[:496000] if case == "wave_31.0s" else waves[case]
    return wave[start:end].astype(np.float32) / 32768


def image_item(pixels: np.ndarray, max_slices: int) -> MediaItem:
    plan = plan_slices(pixels.shape[1], pixels.shape[0], max_slices)
    return MediaItem("image", b"", 64 * plan.count, picture_arrays([(plan, scaled(pixels, plan))]))


def patches_of(item: MediaItem) -> torch.Tensor:
    """[P, 588] uint8, slices concatenated."""
    return torch.cat(slice_patches([item], torch.device("cpu"))[0])


def packed_item(frames: Sequence[MediaItem], groups: Sequence[Sequence[int]]) -> MediaItem:
    """Frames of one slice each, packed as in a list of groups of temporal ids."""
    arrays = {
        **{f"source.{i}": frame.arrays["source.0"] for i, frame in enumerate(frames)},
        "cuts": np.concatenate([frame.arrays["cuts"] + [i, 0, 0, 0, 0] for i, frame in enumerate(frames)]),
        "groups": np.repeat(np.arange(len(groups)), [len(group) for group in groups]).astype(np.int32),
        "temporal_ids": np.concatenate(groups).astype(np.int32),
    }
    return MediaItem("video", b"", 64 * len(groups), arrays)


def audio_item(samples: np.ndarray, rows: int = 10**6) -> MediaItem:
    return mel_item([log_mel(clip) for clip in split_clips(samples)], rows)


def mel_item(mels: Sequence[np.ndarray], rows: int = 10**6) -> MediaItem:
    frames = np.array([mel.shape[1] for mel in mels], dtype=np.int32)
    return MediaItem("audio", b"", rows, {"mel": np.concatenate(mels, axis=1), "frames": frames})


def prompt_embeddings(
    model: Model, ids: Sequence[int], bounds: Sequence[Sequence[int]], rows: torch.Tensor
) -> torch.Tensor:
    """[N, E]: token embeddings, with media rows dealt to the placeholder ranges in order."""
    x = model.embed(torch.tensor(ids))
    at = (
        torch.cat([torch.arange(start, stop) for start, stop in bounds])
        if bounds
        else torch.empty(0, dtype=torch.int64)
    )
    x[at] = rows[: len(at)]
    return x


def greedy(model: Model, x: torch.Tensor, steps: int, penalty: float) -> tuple[list[int], torch.Tensor]:
    """Tokens and raw logits [steps, V] after prompt embeddings x, one token at a time over the paged cache."""
    cache = Cache(model, len(x) + steps)
    rows, tokens = [model.logits(cache.run(x)[-1:])], []
    for step in range(steps):
        logits = rows[-1][0].clone()
        seen = logits[tokens]
        logits[tokens] = torch.where(seen > 0, seen / penalty, seen * penalty)
        tokens.append(int(logits.argmax()))
        if step + 1 < steps:
            rows.append(model.logits(cache.run(model.embed(torch.tensor(tokens[-1:])))))
    return tokens, torch.cat(rows)


def run_packed(model: Model, x: torch.Tensor) -> torch.Tensor:
    """Hidden states [N, E] of one sequence, without a cache."""
    return model(x, ModelInputs(torch.arange(len(x)), PackedPlan(1)))


class Cache:
    """A paged KV cache of one sequence, with its blocks out of order."""

    def __init__(self, model: Model, num_tokens: int, block_size: int = 16) -> None:
        blocks = -(-num_tokens // block_size)
        shape = (2, blocks + 1, block_size, model.num_kv_heads, model.head_dim)
        self.model = model
        self.kv = [torch.zeros(shape) for _ in range(model.num_layers)]
        self.table = list(range(blocks, 0, -1))
        self.block_size = block_size
        self.length = 0

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Append x [n, E] -> hidden [n, E]."""
        start, self.length = self.length, self.length + len(x)
        plan = PagedPlan([len(x)], [self.length], [self.table], self.block_size, x.device)
        return self.model(x, ModelInputs(torch.arange(start, self.length), plan, self.kv))
