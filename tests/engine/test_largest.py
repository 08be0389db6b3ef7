"""The largest media that settings admit: nothing admitted is larger, and what cannot hold it does not start."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from sensorium.cli.logs import report_loaded
from sensorium.config import EngineConfig, MediaLimits
from sensorium.engine.checkpoint import open_checkpoint, open_processor
from sensorium.engine.client import EngineClient
from sensorium.engine.largest import encode_samples, largest_item, largest_media, sample_media
from sensorium.engine.loading import encoder_cache_bytes
from sensorium.errors import CheckpointError
from sensorium.media import audio
from sensorium.types import ChatOptions, Media, Message

FOLDERS = {name: f"models/{name}" for name in ("llava", "qwen2_vl", "qwen2_5_vl")} | {"minicpm": "minicpmo45/tiny"}
MODALITIES = {"llava": ("image",), "qwen2_vl": ("image", "video"), "qwen2_5_vl": ("image", "video")}
EVERY = ("image", "video", "audio")


def largest(golden: Path, name: str, longest: int, **settings) -> tuple:
    config = EngineConfig(model=str(golden / FOLDERS[name]), **settings)
    processor = open_processor(*open_checkpoint(config), config)
    prompts = largest_media(processor, MODALITIES.get(name, EVERY), config, longest)
    return processor, {modality: largest_item(prompt).rows for modality, prompt in prompts.items()}


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("longest", [640, 1000])
def test_no_medium_that_fits_the_context_is_larger(golden: Path, name: str, longest: int):
    processor, found = largest(golden, name, longest)
    assert set(found) == set(MODALITIES.get(name, EVERY))
    draw = np.random.default_rng(5)
    for modality, most in found.items():
        assert most <= longest
        for _ in range(25):
            height, width = (int(side) for side in draw.integers(30, 900, 2))
            if modality == "audio":
                medium = audio.from_array(np.zeros(int(draw.integers(1600, 1_700_000)), dtype=np.float32))
            else:
                shape = (height, width, 3) if modality == "image" else (int(draw.integers(1, 9)), height, width, 3)
                times = np.arange(shape[0]) / 2.0 if modality == "video" else None
                medium = Media(modality, np.zeros(shape, np.uint8), b"other", times_s=times)  # pyright: ignore
            prompt = processor.chat([Message("user", (medium,))], ChatOptions())
            rows = max(item.rows for item in prompt.media)
            assert rows <= most or rows > longest


def test_sizes_that_the_operator_names_and_limits_of_media_count(golden: Path):
    sizes = {"image": {"width": 56, "height": 84}, "video": {"num_frames": 4, "width": 56, "height": 56}}
    _, full = largest(golden, "qwen2_vl", 4096)
    _, named = largest(golden, "qwen2_vl", 4096, limit_mm_per_prompt=sizes)
    assert named["image"] == 2 * 3 < full["image"]
    assert named["video"] < full["video"]
    _, off = largest(golden, "qwen2_vl", 4096, limit_mm_per_prompt={"video": 0})
    assert set(off) == {"image"}
    _, heard = largest(golden, "minicpm", 4096, limits=MediaLimits(max_audio_s=60.0))
    _, told = largest(golden, "minicpm", 4096, limit_mm_per_prompt={"audio": {"length": 30 * 16000}})
    assert heard["audio"] == 2 * told["audio"]
    _, sliced = largest(golden, "minicpm", 4096, mm_processor_kwargs={"max_slice_nums": 2})
    assert sliced["image"] == 3 * 64


def test_planning_for_the_longest_video_holds_none(golden: Path):
    """A hundred thousand rows of frames would be half a gigabyte."""
    tracemalloc.start()
    _, found = largest(golden, "qwen2_vl", 100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["video"] > 90_000
    assert peak < 100 << 20


def client(golden: Path, name: str, **settings) -> EngineClient:
    base = {"model": str(golden / FOLDERS[name]), "kv_cache_bytes": 64 << 20, "max_model_len": 512}
    return EngineClient(EngineConfig(**(base | settings)))


def test_a_cache_or_a_step_that_cannot_hold_it_does_not_start(golden: Path):
    with pytest.raises(CheckpointError, match=r"the largest video has 512 .*holds 511: raise encoder_cache_tokens"):
        client(golden, "qwen2_vl", encoder_cache_tokens=511)
    with pytest.raises(CheckpointError, match=r"the largest video takes 512 tokens.*max_num_batched_tokens"):
        client(golden, "qwen2_vl", disable_chunked_mm_input=True, max_num_batched_tokens=500)
    with pytest.raises(CheckpointError, match="max_pixels"):
        client(golden, "qwen2_vl", mm_processor_kwargs={"max_pixels": -1})


def test_what_holds_it_starts_and_says_so(golden: Path, caplog: pytest.LogCaptureFixture):
    settings = {"encoder_cache_tokens": 512, "disable_chunked_mm_input": True, "max_num_batched_tokens": 512}
    with client(golden, "qwen2_vl", **settings) as engine, caplog.at_level(logging.INFO):
        report_loaded(engine)
        assert engine.facts.plan.largest == {"image": 64, "video": 512}
        # What a GPU is measured with runs: as many of each as a step may encode.
        loaded, config = engine.loaded, engine.config
        prompts = sample_media(loaded.processor, engine.modalities, config, 512)
        with torch.inference_mode():
            assert encode_samples(loaded.model, prompts, config, 512) == 4096 + 4096
    assert "Planned for the largest media: image 64 tokens, video 512 tokens" in caplog.text


def test_the_cache_grows_with_the_largest_item_unless_its_size_is_given():
    assert encoder_cache_bytes(EngineConfig(), 2, 100_000) == 200_000
    assert encoder_cache_bytes(EngineConfig(), 2, 10) == 2 * 65_536
    assert encoder_cache_bytes(EngineConfig(encoder_cache_tokens=7), 2, 100_000) == 14
