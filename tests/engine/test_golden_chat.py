"""Whole conversations against the reference's chat(): same prompt ids, same greedy tokens, through the real client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.media import audio, image
from sensorium.types import ChatOptions, Finished, Media, Message, SamplingParams

CASES = (
    "text_only", "text_thinking", "text_tts_template", "one_image", "one_image_noslice_noid", "one_image_id_true",
    "two_images", "few_shot", "video_frames", "audio_text", "system_text", "mixed", "omni", "omni_image_id",
    "two_audios_two_turns", "long_audio", "no_penalty",
)  # fmt: skip
TEMPLATE_KWARGS = ("enable_thinking", "use_tts_template")
MEDIA_KWARGS = ("max_slice_nums", "use_image_id", "omni_mode")


@pytest.fixture(scope="module")
def reference(golden_core: Path) -> dict[str, Any]:
    folder = golden_core / "minicpmo45"
    cases = json.loads((folder / "chat" / "chat.json").read_text())["cases"]
    waves = load_file(folder / "audio" / "waveforms_int16.safetensors")
    return {"folder": folder, "cases": {case["name"]: case for case in cases}, "waves": waves}


@pytest.fixture(scope="module")
def client(reference):
    with EngineClient(EngineConfig(model=str(reference["folder"] / "tiny"))) as made:
        yield made


def _part(part: dict[str, Any], reference: dict[str, Any]) -> str | Media:
    if "text" in part:
        return part["text"]
    if "image" in part:
        with Image.open(reference["folder"] / "images" / f"{part['image']}.png") as picture:
            return image.from_pil(picture, part["image"])
    wave = _wave(part["audio"]["wave"], reference["waves"])
    return audio.from_array(wave[part["audio"]["start"] : part["audio"]["end"]], 16000, "audio")


def _wave(name: str, waves: dict[str, np.ndarray]) -> np.ndarray:
    # The longest recording is stored as what it is a tiling of.
    wave = np.tile(waves["wave_7.3s"], 5)[:496000] if name == "wave_31.0s" else waves[name]
    return wave.astype(np.float32) / 32768


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, client: EngineClient, reference: dict[str, Any]) -> None:
    case = reference["cases"][name]
    kwargs, generation = case["chat_kwargs"], case["generation_kwargs"]
    messages = [
        Message(message["role"], tuple(_part(part, reference) for part in message["content"]))
        for message in case["messages"]
    ]
    options = ChatOptions(
        template_kwargs={key: kwargs[key] for key in TEMPLATE_KWARGS if key in kwargs},
        media_kwargs={key: kwargs[key] for key in MEDIA_KWARGS if key in kwargs},
    )
    made = client.prepare_chat(messages, options)
    assert list(made.ids) == case["input_ids"]

    sampling = SamplingParams(
        temperature=0.0,
        max_tokens=generation["max_new_tokens"],
        repetition_penalty=generation["repetition_penalty"],
        penalize_prompt=False,  # the reference generates from embeddings and so never sees the prompt's ids
    )
    events = list(client.submit(made, sampling))
    assert isinstance(events[-1], Finished)
    assert [token for event in events[:-1] for token in event.token_ids] == case["generated_ids"]


def test_a_batch_equals_the_reference(client: EngineClient, reference: dict[str, Any]) -> None:
    """The reference pads three conversations on the left; here they share steps."""
    case = reference["cases"]["batch3"]
    sampling = SamplingParams(temperature=0.0, max_tokens=16, repetition_penalty=1.02, penalize_prompt=False)
    options = ChatOptions(media_kwargs={"max_slice_nums": case["chat_kwargs"]["max_slice_nums"]})
    streams = []
    for messages, ids, mask in zip(case["messages_batch"], case["input_ids"], case["attention_mask"], strict=True):
        parts = tuple(_part(part, reference) for message in messages for part in message["content"])
        made = client.prepare_chat([Message("user", parts)], options)
        assert list(made.ids) == [token for token, real in zip(ids, mask, strict=True) if real]
        streams.append(client.submit(made, sampling))
    answers = [[token for event in list(stream)[:-1] for token in event.token_ids] for stream in streams]
    assert answers == case["generated_ids"]
