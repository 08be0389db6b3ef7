"""as_duplex() on the reference's tiny checkpoint: real pictures and sound, through processor, encoders and engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.errors import RequestError, UnsupportedError
from sensorium.minicpm.duplex import Duplex

RATE = 16_000


@pytest.fixture
def duplex(omni: Any) -> Iterator[Duplex]:
    view = omni.as_duplex(generate_audio=False, seed=3)
    yield view
    assert view.as_simplex(reset_session=True) is omni
    assert omni.client.num_sessions == 0


def second(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, RATE).astype(np.float32)


def picture(seed: int = 0, size: tuple[int, int] = (320, 240)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_units_of_every_kind(duplex):
    prompt = duplex.prepare(prefix_system_prompt="Talk.", ref_audio=second(9))
    assert prompt == "<|im_start|>system\nTalk.\n<|audio_start|>[audio embedding]<|audio_end|><|im_end|>"
    assert duplex.get_current_time() == 0
    fed = duplex.streaming_prefill(second(1), [picture(1), picture(2, (900, 600))], max_slice_nums=[1, 3])
    assert fed["success"]
    assert fed["reason"] == ""
    assert set(fed) == {"success", "reason", "cost_all"} | {
        f"cost_{kind}_{step}" for kind in ("vision", "audio") for step in ("process", "embed", "feed")
    }
    first = duplex.streaming_generate(decode_mode="greedy")
    assert list(first) == [
        *("is_listen", "text", "audio_waveform", "end_of_turn", "current_time", "cost_llm", "cost_tts_prep"),
        *("cost_tts", "cost_token2wav", "cost_all", "n_tokens", "n_tts_tokens"),
    ]
    assert first["current_time"] == 1
    assert duplex.streaming_prefill(second(2))["success"]
    duplex.streaming_generate()
    assert duplex.streaming_prefill(frame_list=[picture(3)])["success"]
    duplex.streaming_generate(force_listen_override=True)
    assert duplex.streaming_prefill(text_list=["hello"])["success"]
    assert duplex.streaming_generate()["current_time"] == 3  # a unit of text alone is not counted
    units = duplex.get_unit_schemas()
    assert duplex.get_session_schema() == "".join(units)
    image = "<image>[img_embed_64]</image>"
    slices = "<slice>[img_embed_64]</slice>" * 2
    assert units[0].startswith(f"<unit>{image}{image}{slices}[audio_embed_10]")
    assert units[1].startswith("<unit>[audio_embed_10]")
    assert units[2].startswith(f"<unit>{image}")
    assert units[3].startswith("<unit>hello")
    assert all(unit.endswith("</unit>") for unit in units)
    assert "[img_embed_64]" not in duplex.get_session_schema(include_embeddings=False)
    assert duplex.decoder.get_window_stats()["num_units"] == 4


def test_what_is_drawn_can_be_repeated(omni):
    def session(**options: Any) -> str:
        view = omni.as_duplex(generate_audio=False, max_new_speak_tokens_per_chunk=6, **options)
        view.prepare()
        for index in range(3):
            view.streaming_prefill(second(index))
            view.streaming_generate(temperature=1.5, top_k=0, top_p=1.0, listen_scale=0.0)
        schema = view.get_session_schema()
        view.as_simplex()
        return schema

    assert session(seed=5) == session(seed=5) != session(seed=6)
    torch.manual_seed(11)
    once = session()
    torch.manual_seed(11)
    assert session() == once != session()


def test_too_little_sound_is_told_before_anything_is_fed(duplex):
    duplex.prepare()
    assert duplex.streaming_prefill(second()[:100])["success"]  # silence in front fills the first unit
    duplex.streaming_generate(force_listen_override=True)
    before = duplex.decoder.get_window_stats()["cache_length"]
    missing = duplex.streaming_prefill(second()[:15_000], [picture()])
    assert missing["success"] is False
    assert "920 samples" in missing["reason"]
    waiting = duplex.streaming_generate()
    assert (waiting["is_listen"], waiting["end_of_turn"]) == (True, False)
    assert duplex.streaming_prefill(second()[:920])["success"]
    duplex.streaming_generate(force_listen_override=True)
    assert duplex.decoder.get_window_stats()["cache_length"] == before + 13
    assert duplex.streaming_prefill()["success"] is False


def test_a_break_feeds_nothing_until_it_is_cleared(duplex):
    duplex.prepare()
    for set_it, clear_it in (
        (duplex.set_break_event, duplex.clear_break_event),
        (duplex.set_session_stop, duplex.clear_session_stop),
    ):
        set_it()
        assert duplex.streaming_prefill(second())["success"] is False
        refused = duplex.streaming_generate()
        assert (refused["is_listen"], refused["end_of_turn"], refused["current_time"]) == (True, True, 0)
        assert refused["audio_waveform"].shape == (24_000,)
        clear_it()
    assert duplex.get_session_schema() == ""
    assert duplex.streaming_prefill(second())["success"]
    duplex.set_session_stop()
    duplex.prepare()
    assert duplex.streaming_prefill(second())["success"]


def test_options_are_defaults_of_the_arguments(omni):
    view = omni.as_duplex(generate_audio=False, max_new_speak_tokens_per_chunk=3, listen_scale=0.0, seed=1)
    view.prepare()
    lengths = []
    for given in ({}, {"max_new_speak_tokens_per_chunk": 5}):
        view.streaming_prefill(second())
        lengths.append(view.streaming_generate(temperature=3.0, top_k=0, top_p=1.0, **given)["n_tokens"])
    assert lengths[0] <= 1
    assert lengths[1] <= 3
    view.as_simplex()


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"temprature": 1}, RequestError, "temprature"),
        ({"chunk_ms": 500}, UnsupportedError, "chunk_ms"),
        ({"sliding_window_mode": "all"}, RequestError, "sliding_window_mode"),
        ({"basic_window_low_tokens": 9000}, RequestError, "basic_window_low_tokens"),
        ({"force_listen_count": -1}, RequestError, "force_listen_count"),
    ],
)
def test_wrong_options_are_named(omni, options, error, name):
    with pytest.raises(error, match=name):
        omni.as_duplex(generate_audio=False, **options)


def test_wrong_arguments_are_named_and_cost_nothing(duplex):
    assert "prepare" in duplex.streaming_prefill(second())["reason"]
    duplex.prepare()
    for wrong, name in (
        ({"audio_waveform": np.zeros((2, RATE), np.float32)}, "audio_waveform"),
        ({"audio_waveform": np.full(RATE, np.nan, np.float32)}, "audio_waveform"),
        ({"frame_list": ["picture.png"]}, "frame_list"),
        ({"audio_waveform": second(), "frame_list": [picture()], "max_slice_nums": [1, 2]}, "max_slice_nums"),
    ):
        with pytest.raises(RequestError, match=name):
            duplex.streaming_prefill(**wrong)
    assert duplex.streaming_prefill(second())["success"]
    with pytest.raises(RequestError, match="temperature"):
        duplex.streaming_generate(temperature=-1.0)
    duplex.streaming_generate(force_listen_override=True)
    assert duplex.get_session_schema() == "<unit>[audio_embed_10]<|listen|></unit>"


@pytest.mark.parametrize(
    ("mode", "options", "bound"),
    [
        ("off", {}, 4000),
        ("basic", {"basic_window_high_tokens": 300, "basic_window_low_tokens": 200}, 301),
        ("context", {"context_max_units": 6, "context_previous_max_tokens": 20}, 400),
    ],
)
def test_windows_keep_their_lengths_over_many_units(omni, mode, options, bound):
    view = omni.as_duplex(generate_audio=False, sliding_window_mode=mode, max_len=4000, seed=2, **options)
    view.prepare()
    frames = [picture(seed, (64, 64)) for seed in range(2)]
    longest, listened = 0, 0
    for index in range(60):
        view.streaming_prefill(second(index % 4), [frames[index % 2]] if index % 20 == 0 else None)
        said = view.streaming_generate(max_new_speak_tokens_per_chunk=5, force_listen_override=index % 3 == 0)
        listened += said["is_listen"]
        stats = view.decoder.get_window_stats()
        longest = max(longest, stats["cache_length"])
        if mode == "context":
            assert stats["num_units"] <= 6
            assert stats["previous_tokens"] <= 20
    assert longest <= bound
    assert listened >= 20
    assert (stats["num_units_dropped"] > 0) is (mode != "off")
    assert len(view.get_unit_schemas()) == 60
    view.as_simplex()
