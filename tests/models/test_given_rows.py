"""Embeddings in place of media: what comes of a picture's own rows is what comes of the picture, on every way in."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from server.live import Live, serve

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.live_media import read_items
from sensorium.media import audio, image
from sensorium.messages import read_media
from sensorium.types import Finished, Media, Message, Prompt, SamplingParams, TextDelta

FAMILIES = {
    "llava": ("models/llava", ("image",)),
    "qwen2_vl": ("models/qwen2_vl", ("image", "video")),
    "qwen2_5_vl": ("models/qwen2_5_vl", ("image", "video")),
    "minicpm": ("minicpmo45/tiny", ("image", "audio")),
}
CASES = [(family, modality) for family, (_, modalities) in FAMILIES.items() for modality in modalities]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, logprobs=0)
DRAW = np.random.default_rng(11)
PIXELS = DRAW.integers(0, 256, (6, 112, 168, 3), dtype=np.uint8)
SAMPLES = (np.sin(np.arange(24_000) / 11) / 3).astype(np.float32)

Scores = list[tuple[int, float]]


@dataclass(frozen=True)
class Engine:
    client: EngineClient
    live: Live

    def answer(self, *parts: Any) -> Scores:
        return self.run(self.client.prepare_chat([Message("user", (*parts, "What?"))]))

    def read(self, modality: Any, tensors: Mapping[str, np.ndarray]) -> Scores:
        """As LLM reads what stands in multi_modal_data."""
        return self.answer(*read_items(modality, {name: torch.from_numpy(array) for name, array in tensors.items()}))

    def run(self, prompt: Prompt) -> Scores:
        events = list(self.client.submit(prompt, GREEDY))
        assert isinstance(events[-1], Finished), events[-1]
        return [(one.token_id, one.logprob) for e in events if isinstance(e, TextDelta) for one in e.logprobs]

    def post(self, *parts: Mapping[str, Any]) -> tuple[int, Any]:
        content = [*parts, {"type": "text", "text": "What?"}]
        body = {"model": "m", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6}
        return self.live.post(body | {"ignore_eos": True, "logprobs": True, "return_tokens_as_token_ids": True})

    def asked(self, *parts: Mapping[str, Any]) -> Scores:
        status, answer = self.post(*parts)
        assert status == 200, answer
        tokens = answer["choices"][0]["logprobs"]["content"]
        return [(int(one["token"].partition(":")[2]), one["logprob"]) for one in tokens]

    def rows(self, medium: Media) -> dict[str, np.ndarray]:
        """What a caller would hold of a medium: the encoder's rows, and what the family needs to know beside them."""
        (item,) = self.client.prepare_chat([Message("user", (medium,))]).media
        loaded = self.client.loaded
        with torch.inference_mode():
            rows = loaded.model.encode(item.modality, [item])[0].numpy()
        found = {f"{medium.modality}_embeds": rows}
        if "seconds" in item.arrays:
            frames, height, width, _ = item.arrays["frames"].shape
            grid = np.array([-(-frames // 2), height // 14, width // 14], dtype=np.int64)
            found[f"{medium.modality}_grid_thw"] = grid
            if medium.modality == "video" and "2_5" in self.client.model_name:
                found["second_per_grid_ts"] = np.array([1.0], dtype=np.float32)
        elif self.client.modalities != ("image",) and medium.modality == "image":
            found["image_sizes"] = np.array([medium.data.shape[1], medium.data.shape[0]], dtype=np.int64)
        return found


@pytest.fixture(scope="module")
def engines(golden: Path) -> Iterator[Any]:
    made: dict[str, Engine] = {}
    with ExitStack() as stack:

        def engine(family: str) -> Engine:
            if family not in made:
                config = EngineConfig(
                    model=str(golden / FAMILIES[family][0]),
                    kv_cache_bytes=64 << 20,
                    max_model_len=1024,
                    media_threads=1,
                    enable_mm_embeds=True,
                )
                client = stack.enter_context(EngineClient(config))
                made[family] = Engine(client, stack.enter_context(serve(client, served_model_name="m")))
            return made[family]

        yield engine


def medium(modality: str, number: int = 0) -> Media:
    if modality == "audio":
        return audio.from_array(SAMPLES[: 16_000 + 4000 * number])
    if modality == "image":
        return image.from_array(PIXELS[number])
    item = read_media("video", (PIXELS[:4], 2.0), "")
    assert isinstance(item, Media)
    return item


def part(modality: str, tensors: Mapping[str, np.ndarray], **more: Any) -> dict[str, Any]:
    """A content part, one file of base64 a tensor, and a bare one where there is only the one."""
    texts = {
        name: base64.b64encode(save({name: np.ascontiguousarray(array)})).decode() for name, array in tensors.items()
    }
    kind = f"{modality}_embeds"
    return {"type": kind, kind: texts if len(texts) > 1 else texts[kind], **more}


def same(one: Scores, other: Scores) -> None:
    assert [token for token, _ in one] == [token for token, _ in other]
    assert [score for _, score in one] == pytest.approx([score for _, score in other], abs=1e-4)


@pytest.mark.parametrize(("family", "modality"), CASES)
def test_a_mediums_own_rows_answer_as_the_medium(engines: Any, family: str, modality: str):
    engine = engines(family)
    seen = medium(modality)
    tensors = engine.rows(seen)
    wanted = engine.answer(seen)
    (given,) = read_items(modality, {name: torch.from_numpy(array)[None] for name, array in tensors.items()})
    same(engine.answer(given), wanted)
    same(engine.asked(part(modality, tensors)), wanted)


# Sounds of one message are one recording, which the test after the next has apart.
@pytest.mark.parametrize(("family", "modality"), [case for case in CASES if case[1] != "audio"])
def test_raw_and_embedded_items_mix(engines: Any, family: str, modality: str):
    engine = engines(family)
    first, second = medium(modality), medium("image" if modality == "video" else modality, 1)
    (given,) = read_items(modality, {name: torch.from_numpy(array)[None] for name, array in engine.rows(first).items()})
    same(engine.answer(given, second), engine.answer(first, second))
    same(engine.answer(second, given), engine.answer(second, first))


def test_a_recording_and_one_given_as_rows_keep_their_order(engines: Any):
    engine = engines("minicpm")
    first, second = medium("audio"), medium("audio", 1)
    (given,) = read_items("audio", {"audio_embeds": torch.from_numpy(engine.rows(first)["audio_embeds"])[None]})

    def apart(*sounds: Any) -> Prompt:
        return engine.client.prepare_chat([Message("user", (sound,)) for sound in sounds])

    same(engine.run(apart(given, second)), engine.run(apart(first, second)))
    same(engine.run(apart(second, given)), engine.run(apart(second, first)))


def spoiled(modality: str, tensors: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Ways to be wrong, each of which could hurt a model that looked no closer."""
    name = f"{modality}_embeds"
    rows = tensors[name]
    poison, endless = rows.copy(), rows.copy()
    poison[0, 0], endless[-1, -1] = np.nan, np.inf
    ways = {
        "a row wider": {name: np.pad(rows, ((0, 0), (0, 1)))},
        "flat": {name: rows[0]},
        "four dimensions": {name: rows[None, None]},
        "integers": {name: rows.astype(np.int64)},
        "not a number": {name: poison},
        "infinite": {name: endless},
        "none": {name: rows[:0]},
        "of another name": {"pixel_values": rows},
    }
    if len(tensors) > 1 or modality == "image":
        ways["a row missing"] = {name: rows[:-1]}
    for other in set(tensors) - {name, "second_per_grid_ts"}:
        for label, value in (("zero", 0), ("negative", -2), ("huge", 1 << 40)):
            ways[f"{other} {label}"] = {other: np.full_like(tensors[other], value)}
        ways[f"{other} short"] = {other: tensors[other][:-1]}
        ways[f"{other} of floats"] = {other: tensors[other] + np.float32(0.5)}
    return {label: {**tensors, **change} for label, change in ways.items()}


@pytest.mark.parametrize(("family", "modality"), CASES)
def test_what_does_not_fit_is_refused_and_the_engine_goes_on(engines: Any, family: str, modality: str):
    engine = engines(family)
    tensors = engine.rows(medium(modality))
    wanted = engine.asked(part(modality, tensors))
    for label, wrong in spoiled(modality, tensors).items():
        body = part(modality, wrong) if f"{modality}_embeds" in wrong else None
        if body is None or label == "of another name":
            texts = {name: base64.b64encode(save({name: array})).decode() for name, array in wrong.items()}
            body = {"type": f"{modality}_embeds", f"{modality}_embeds": texts}
        status, answer = engine.post(body)
        assert status == 400, (label, status, answer)
        assert answer["error"]["param"].startswith("messages[0].content[0]"), (label, answer)
        with pytest.raises(ValueError):
            engine.read(modality, wrong)
    same(engine.asked(part(modality, tensors)), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_id_given_twice_is_prepared_and_encoded_once(engines: Any, family: str):
    engine = engines(family)
    given = part("image", engine.rows(medium("image")), uuid=f"the same {family}")
    before = engine.client.media_stats().pool.items
    engine.asked(given, given)
    reference = {**given, "image_embeds": None}
    engine.asked(given, reference)
    assert engine.client.media_stats().pool.items - before == 1


def test_a_reference_beside_its_data_and_by_another_kind_of_part(engines: Any):
    engine = engines("llava")
    given = part("image", engine.rows(medium("image")), uuid="beside")
    twice = engine.asked({**given, "image_embeds": None}, given)
    same(engine.asked({"type": "image_url", "image_url": None, "uuid": "beside"}, given), twice)
    status, answer = engine.post({"type": "image_url", "image_url": None, "uuid": "nobody's"})
    assert (status, answer["error"]["code"]) == (400, "mm_cache_miss")
