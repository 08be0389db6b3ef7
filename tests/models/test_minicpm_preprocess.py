"""Slicing and mel features against the reference's stored numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from sensorium.models.minicpm_features import log_mels
from sensorium.models.minicpm_mel import log_mel, mel_filters, mel_frames, pooled_rows, split_clips, total_rows
from sensorium.models.minicpm_pixels import slice_patches, slice_sizes
from sensorium.models.minicpm_slices import SlicePlan, picture_arrays, plan_slices, scaled
from sensorium.types import MediaItem


@pytest.fixture(scope="module")
def data(golden: Path) -> Path:
    return golden / "minicpmo45"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_slicing_table(data: Path):
    for width, height, limit, grid, overview, refined, count, sizes, rows in read_json(
        data / "preprocess/size_table.json"
    )["rows"]:
        plan = plan_slices(width, height, limit)
        assert [list(plan.grid) if plan.grid else None, list(plan.overview)] == [grid, overview]
        assert (list(plan.refined) if plan.refined else None) == refined
        assert plan.count == count
        assert 64 * plan.count == rows
        assert [list(size) for size in plan.patch_sizes[:2]] == sizes


def patches_of(plan: SlicePlan, sources: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Per slice [P, 588], as the model makes them."""
    item = MediaItem("image", b"", 64 * plan.count, picture_arrays([(plan, sources)]))
    assert slice_sizes(item.arrays).tolist() == [list(size) for size in plan.patch_sizes]
    return [patches.numpy() for patches in slice_patches([item], torch.device("cpu"))[0]]


@pytest.mark.parametrize("on_device", [False, True])
def test_slices_and_patches_are_bit_equal(data: Path, on_device: bool):
    """on_device: the picture goes to the model as it is."""
    for case in read_json(data / "preprocess/slices.json")["cases"]:
        pixels = np.array(Image.open(data / f"images/{case['image']}.png").convert("RGB"))
        plan = plan_slices(pixels.shape[1], pixels.shape[0], case["max_slice_nums"])
        sources = (pixels,) if on_device else scaled(pixels, plan)
        found = zip(patches_of(plan, sources), plan.patch_sizes, case["slices"], strict=True)
        for part, (rows, columns), expected in found:
            whole = part.reshape(rows, columns, 3, 14, 14).transpose(0, 3, 1, 4, 2)
            assert hashlib.sha256(np.ascontiguousarray(whole)).hexdigest() == expected["uint8_sha256"]
            # The reference keeps float pixels as [3, 14, 14 P]; ours are bytes [P, 588] until the model scales them.
            values = (part.astype(np.float32) / 255 - np.float32(0.5)) / np.float32(0.5)
            values = np.ascontiguousarray(values.reshape(-1, 3, 14, 14).transpose(1, 2, 0, 3))
            assert hashlib.sha256(values).hexdigest() == expected["pixel_values_sha256"]


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (2, 10_000), (10_000, 2), (28, 29), (336, 335), (449, 447)])
@pytest.mark.parametrize("limit", [1, 2, 9, 36])
def test_h093_h095_any_size_is_cut_into_whole_patches(size: tuple[int, int], limit: int):
    plan = plan_slices(*size, limit)
    found = patches_of(plan, scaled(np.zeros((size[1], size[0], 3), dtype=np.uint8), plan))
    assert len(found) == plan.count <= limit + 1
    assert [part.shape for part in found] == [(rows * columns, 588) for rows, columns in plan.patch_sizes]


def test_mel_filters(data: Path):
    filters = load_file(data / "audio/offline.safetensors")["mel_filters_201x80"]
    np.testing.assert_allclose(mel_filters(), filters, atol=1e-8)


def test_mel(data: Path):
    stored = load_file(data / "audio/offline.safetensors")
    waves = {
        name: wave.astype(np.float32) / 32768
        for name, wave in load_file(data / "audio/waveforms_int16.safetensors").items()
    }
    for seconds in ("0.3s", "1.0s", "7.3s"):
        np.testing.assert_allclose(log_mel(waves[f"wave_{seconds}"]), stored[f"mel_{seconds}"][0], atol=1e-5)
    clips = split_clips(np.tile(waves["wave_7.3s"], 5)[:496_000])
    assert [mel_frames(len(clip)) for clip in clips] == [3000, 100]
    first, last = (log_mel(clip) for clip in clips)
    np.testing.assert_allclose(first[:, ::50], stored["mel_31.0s_every50"][0], atol=1e-5)
    np.testing.assert_allclose(first[:, :40], stored["mel_31.0s_first40"][0], atol=1e-5)
    np.testing.assert_allclose(last[:, :40], stored["mel_31.0s_first40"][1], atol=1e-5)


def test_mel_as_the_device_makes_it():
    """Many clips at once, bit for bit what one alone becomes; the reference's numbers are those of test_mel."""
    rng = np.random.default_rng(0)
    for lengths in ([1600, 480, 16_123], [480_000, 479_961, 479_700], [479_999, 1000]):
        clips = [rng.standard_normal(length).astype(np.float32) * np.float32(0.1) for length in lengths]
        clips[1][: lengths[1] // 2] = 0
        clips[-1][:] *= lengths[0] > 2000  # a silent one
        samples = np.zeros((len(clips), 160 * max(map(mel_frames, lengths))), dtype=np.float32)
        for row, clip in zip(samples, clips, strict=True):
            row[: len(clip)] = clip
        mels, frames = log_mels(torch.from_numpy(samples), torch.tensor(lengths))
        assert frames.tolist() == [mel_frames(length) for length in lengths]
        for mel, count, clip in zip(mels.numpy(), frames.tolist(), clips, strict=True):
            np.testing.assert_allclose(mel[:, :count], log_mel(clip), atol=1e-6)
            assert not mel[:, count:].any()


def test_rows_of_any_length(data: Path):
    for samples, rows, _ in read_json(data / "audio/audio.json")["placeholder_formula_table"]:
        assert pooled_rows(samples, 5) == total_rows(samples, 5) == rows


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 399, 400, 1600, 479_999, 480_000])
def test_h142_h151_mel_of_extreme_sounds_is_finite(samples: int):
    for value in (0.0, 1.0, -1.0, 1e30):
        mel = log_mel(np.full(samples, value, dtype=np.float32))
        assert mel.shape == (80, mel_frames(samples))
        assert np.isfinite(mel).all()
