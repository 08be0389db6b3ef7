"""Beam search against the reference's answer, against transformers, and against an exhaustive search."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from PIL import Image

from sensorium.config import EngineConfig
from sensorium.engine.beam import BeamSearch, abeam_search, beam_search
from sensorium.engine.client import EngineClient
from sensorium.errors import SensoriumError
from sensorium.media import image
from sensorium.models.loader import export_tensors
from sensorium.types import BeamSearchParams, ChatOptions, Message, Prompt


@pytest.fixture(scope="module")
def client(golden_core):
    with EngineClient(EngineConfig(model=str(golden_core / "minicpmo45" / "tiny"))) as made:
        yield made


def test_equals_the_reference_with_a_picture(client, golden_core) -> None:
    folder = golden_core / "minicpmo45"
    cases = json.loads((folder / "chat" / "chat.json").read_text())["cases"]
    case = next(case for case in cases if case["name"] == "beam3")
    with Image.open(folder / "images" / "small320x240.png") as picture:
        parts = (image.from_pil(picture, "image"), case["messages"][0]["content"][1]["text"])
    options = ChatOptions(media_kwargs={"max_slice_nums": 1}, template_kwargs={"use_tts_template": False})
    made = client.prepare_chat([Message("user", parts)], options)
    assert list(made.ids) == case["input_ids"]
    generation = case["generation_kwargs"]
    params = BeamSearchParams(
        beam_width=generation["num_beams"],
        max_tokens=generation["max_new_tokens"],
        repetition_penalty=generation["repetition_penalty"],
    )
    before = client.stats().prompt_tokens
    beams = beam_search(client, made, params)
    assert list(beams[0].token_ids) == case["generated_ids"]
    computed = client.stats().prompt_tokens - before
    assert computed < len(made.ids) + 12 * 3 * 20, "every step after the first reuses the blocks of the prompt"


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_equals_transformers(client, penalty: float) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    source = client.loaded.model.config.source
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    names += ("intermediate_size", "vocab_size", "rms_norm_eps", "max_position_embeddings")
    rope = {"rope_type": "default", "rope_theta": float(source["rope_theta"])}
    config = Qwen3Config(**{name: source[name] for name in names}, rope_parameters=rope, tie_word_embeddings=False)
    reference = Qwen3ForCausalLM(config).eval()
    weights = {n.removeprefix("llm."): t for n, t in export_tensors(client.loaded.model) if n.startswith("llm.")}
    reference.load_state_dict(weights)
    ids = client.tokenizer.encode("The quick brown fox")
    with torch.inference_mode():
        found = reference.generate(
            torch.tensor([ids]),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=10,
            do_sample=False,
            length_penalty=penalty,
            eos_token_id=list(client.tokenizer.eos_ids),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    params = BeamSearchParams(beam_width=4, max_tokens=10, length_penalty=penalty, include_stop_str_in_output=True)
    beams = beam_search(client, Prompt(tuple(ids)), params)
    expected = [row[len(ids) :].tolist() for row in found.sequences]
    for beam, row in zip(beams, expected, strict=True):
        assert list(beam.token_ids) == row[: len(beam.token_ids)]
    torch.testing.assert_close(torch.tensor([b.score for b in beams]), found.sequences_scores, atol=1e-4, rtol=1e-4)


async def test_the_async_form_finds_the_same(client) -> None:
    made = Prompt(tuple(client.tokenizer.encode("Once upon")))
    params = BeamSearchParams(beam_width=3, max_tokens=5)
    found = await abeam_search(client, made, params)
    assert len(found) == 3
    assert [beam.finish_reason for beam in found] == ["length"] * 3
    assert [b.score for b in found] == sorted((b.score for b in found), reverse=True)


def test_a_search_as_wide_as_the_tree_finds_the_best_path() -> None:
    """Three tokens, the last of which ends a text; probabilities depend on the depth only."""
    table = [[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.25, 0.25, 0.5]]
    search = BeamSearch(BeamSearchParams(beam_width=9, max_tokens=3), 3, frozenset({2}))
    while not search.is_over:
        row = table[len(search.live[0].ids)]
        search.advance([[(token, math.log(p)) for token, p in enumerate(row)] for _ in search.live])
    scores = {}
    for length in (1, 2, 3):
        for path in itertools.product(range(3), repeat=length):
            if 2 in path[:-1] or (length < 3 and path[-1] != 2):
                continue
            scores[path] = sum(math.log(table[at][token]) for at, token in enumerate(path)) / length
    best = max(scores, key=scores.__getitem__)
    found = search.best()
    assert found[0][0].ids == best
    assert found[0][1] == pytest.approx(scores[best])


def test_what_cannot_be_searched_is_refused(client) -> None:
    with pytest.raises(SensoriumError, match="temperature"):
        beam_search(client, Prompt((1, 2)), BeamSearchParams(beam_width=2, temperature=0.5))
    with pytest.raises(SensoriumError, match="empty"):
        beam_search(client, Prompt(()), BeamSearchParams(beam_width=2))
