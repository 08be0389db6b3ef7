"""What only Qwen2.5-VL does: windows in the tower, positions that follow the clock, frames sampled from files."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from vl_golden import Family, axes, generate, needs_golden

from sensorium.errors import CheckpointError
from sensorium.messages import read_media
from sensorium.models.mrope import Grid
from sensorium.models.parts.qwen_vision import _places, _windows
from sensorium.models.qwen2_vl import Config
from sensorium.models.qwen2_vl_processor import Processor
from sensorium.types import ChatOptions, MediaRef, Prompt

FAMILY = Family("qwen2_5_vl")


@pytest.fixture(scope="module")
def client():
    with FAMILY.client() as made:
        yield made


def test_windows_cover_each_patch_once_and_hold_neighbours():
    windows = _windows(20, 12, 2, 4)
    assert sorted(np.concatenate(windows)) == list(range(240))
    assert sorted(map(len, windows)) == [16, 32, 32, 32, 64, 64]
    places = _places(20, 12, 2)
    assert places[:5].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]
    for window in windows:
        assert (np.ptp(places[window], axis=0) < 8).all()


def test_times_are_cut_to_whole_positions():
    grid = Grid(4, 1, 2, seconds=2 / 3, per_second=2.0)
    assert grid.coordinates()[0].tolist() == [0, 0, 1, 1, 2, 2, 4, 4]


@needs_golden
def test_the_stored_rows_need_the_windows(client, monkeypatch):
    config = Config.from_hf(json.loads((FAMILY.folder / "config.json").read_text()))
    assert (config.tower.window, config.tower.full_layers, config.tokens_per_second) == (2, {1}, 2.0)
    model = client.loaded.model
    item = FAMILY.prompt(client, "image1").media[0]
    with torch.inference_mode():
        windowed = model.encode("image", [item])[0]
        monkeypatch.setattr(model.vision, "config", replace(config.tower, window=0))
        whole = model.encode("image", [item])[0]
    assert (windowed - whole).abs().max() > 0.01


# ---- time ---------------------------------------------------------------------------------------------------------


def raw(client, **media_kwargs: object) -> Prompt:
    film = FAMILY.media("video")[0]
    options = ChatOptions(media_kwargs={"min_pixels": 3136, **media_kwargs})
    return client.prepare_raw(FAMILY.cases["video"]["prompt"], [film], options)


@needs_golden
def test_the_same_frames_at_another_rate_are_another_prompt(client):
    stored, slower = raw(client), raw(client, fps=1)
    assert np.array_equal(axes(stored), FAMILY.tensor("video", "position_ids"))
    start = slower.spans[0].start
    assert sorted(set(axes(slower)[0, start : slower.spans[0].stop] - start)) == [0, 4]
    assert slower.media[0].key != stored.media[0].key
    # Caches must not mix the two up: the tokens of the first stay what they are.
    assert generate(client, stored) == [FAMILY.greedy("video")]
    assert generate(client, slower) != [FAMILY.greedy("video")]
    assert generate(client, stored) == [FAMILY.greedy("video")]


@needs_golden
def test_frames_of_a_list_keep_their_rate(client):
    frames = FAMILY.tensor("video", "video0")
    options = ChatOptions(media_kwargs={"min_pixels": 3136})
    prompts = [
        client.prepare_raw("<|video_pad|>", [read_media("video", (frames, fps), "")], options) for fps in (0.5, 2.0)
    ]
    assert [int(axes(prompt)[0].max()) for prompt in prompts] == [8, 2]


def film(seconds: float, rate: int = 10) -> bytes:
    """An mp4 of 56 x 56 pixels that grows lighter."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=rate)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        count = round(seconds * rate)
        for index in range(count):
            pixels = np.full((56, 56, 3), index * 255 // count, dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


@needs_golden
@pytest.mark.parametrize(
    ("seconds", "options", "slices", "last"),
    [(6.0, {}, 6, 10), (0.8, {}, 2, 0), (5.7, {}, 5, 9), (6.0, {"fps": 1}, 3, 8), (6.0, {"num_frames": 5}, 2, 6)],
    ids=["two a second", "at least four", "an even number", "fps", "num_frames"],
)
def test_frames_are_sampled_as_the_family_does(client, seconds, options, slices, last):
    ref = MediaRef("video", film(seconds), "video", options)
    prompt = client.prepare_raw("<|video_pad|>", [ref], ChatOptions(media_kwargs={"min_pixels": 3136}))
    assert len(prompt.media[0].arrays["frames"]) == 2 * slices
    assert prompt.media[0].rows == 4 * slices
    assert int(axes(prompt)[0].max()) == last
    assert len(generate(client, prompt)[0]) == 16


@needs_golden
def test_limits_of_a_video_preprocessor_file(tmp_path):
    for path in FAMILY.folder.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    config = Config.from_hf(json.loads((FAMILY.folder / "config.json").read_text()))
    frames = FAMILY.media("video")
    # Without the file, the least number of pixels is that of the reference's class.
    assert Processor(tmp_path, config).raw("<|video_pad|>", frames, ChatOptions()).media[0].rows == 2 * 12 * 12
    limits = {"size": {"shortest_edge": 3136, "longest_edge": 50176}}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(limits))
    assert Processor(tmp_path, config).raw("<|video_pad|>", frames, ChatOptions()).media[0].rows == 8
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(limits | {"fps": 3, "min_frames": 6}))
    assert Processor(tmp_path, config).video_options({}) == {
        "fps": 3, "min_frames": 6, "multiple_of": 2, "use_audio": False
    }  # fmt: skip
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(limits | {"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(CheckpointError, match="video_preprocessor_config"):
        Processor(tmp_path, config)
