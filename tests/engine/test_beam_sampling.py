"""Drawn beams: against transformers with its draws taken out, and what the draws are."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch

from sensorium.config import EngineConfig
from sensorium.engine.beam import beam_search
from sensorium.engine.beam_sampling import BeamSampling
from sensorium.engine.client import EngineClient
from sensorium.models.loader import export_tensors
from sensorium.types import BeamSearchParams, Prompt, SamplingParams


@pytest.fixture(scope="module")
def client(golden_core):
    with EngineClient(EngineConfig(model=str(golden_core / "minicpmo45" / "tiny"))) as made:
        yield made


@pytest.fixture(scope="module")
def reference(client):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    source = client.loaded.model.config.source
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    names += ("intermediate_size", "vocab_size", "rms_norm_eps", "max_position_embeddings")
    rope = {"rope_type": "default", "rope_theta": float(source["rope_theta"])}
    config = Qwen3Config(**{name: source[name] for name in names}, rope_parameters=rope, tie_word_embeddings=False)
    model = Qwen3ForCausalLM(config).eval()
    model.load_state_dict(
        {n.removeprefix("llm."): t for n, t in export_tensors(client.loaded.model) if n[:4] == "llm."}
    )
    return model


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "penalty"),
    [(0.7, 100, 0.8, 1.02), (1.0, 0, 1.0, 1.0), (1.5, 0, 0.3, 1.0), (0.5, 2, 1.0, 1.3)],
)
def test_candidates_equal_those_of_transformers(client, reference, monkeypatch, temperature, top_k, top_p, penalty):
    """With the likeliest candidates in place of drawn ones, both searches come to the same texts."""
    monkeypatch.setattr(torch, "multinomial", lambda probs, num_samples, **_: probs.topk(num_samples).indices)
    ids = client.tokenizer.encode("The quick brown fox")
    with torch.inference_mode():
        found = reference.generate(
            inputs_embeds=reference.get_input_embeddings()(torch.tensor([ids])),
            num_beams=3,
            num_return_sequences=3,
            max_new_tokens=8,
            do_sample=True,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=penalty,
            eos_token_id=list(client.tokenizer.eos_ids),
            pad_token_id=0,
        )
    params = BeamSearchParams(beam_width=3, max_tokens=8, repetition_penalty=penalty, include_stop_str_in_output=True)
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    make = functools.partial(BeamSampling, sampling=sampling, noise=lambda: 0.0)
    beams = beam_search(client, Prompt(tuple(ids)), params, make=make)
    assert [list(beam.token_ids) for beam in beams] == [
        row[: len(b.token_ids)].tolist() for row, b in zip(found, beams, strict=True)
    ]


def test_draws_follow_the_probabilities():
    """One beam and one step: the token drawn first is the likeliest of those drawn only as often as it should be."""
    params = BeamSearchParams(beam_width=1, max_tokens=1)
    ranked = [[(token, logprob) for token, logprob in enumerate([-0.5, -1.5, -2.5, -3.5, -4.5])]]
    probabilities = torch.tensor([-0.5, -1.5, -2.5, -3.5, -4.5]).softmax(0)
    first = Counter()
    for seed in range(2000):
        search = BeamSampling(params, 1, frozenset(), SamplingParams(seed=seed))
        search.advance(ranked)
        first[search.live[0].ids[0]] += 1
    # Two are drawn, the likelier of them goes on: token 0 unless it is in neither.
    without = sum(
        float(probabilities[i] * probabilities[j] / (1 - probabilities[i]))
        for i in range(1, 5)
        for j in range(1, 5)
        if i != j
    )
    assert first[0] / 2000 == pytest.approx(1 - without, abs=0.03)
