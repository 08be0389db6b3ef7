"""What an engine refuses before it queues anything, through the client."""

from __future__ import annotations

import pytest

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.engine.pooler_config import PoolerConfig, read_pooler
from sensorium.errors import CheckpointError, RequestError
from sensorium.types import Finished, PoolingParams, Prompt, SamplingParams, StructuredOutputs

PROMPT = Prompt((1, 2, 3))


@pytest.fixture(scope="module")
def client(any_model):
    with EngineClient(EngineConfig(model=str(any_model), max_model_len=64)) as made:
        yield made


@pytest.fixture(scope="module")
def embedder(any_model):
    with EngineClient(EngineConfig(model=str(any_model), max_model_len=64, runner="pooling")) as made:
        yield made


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"prompt_logprobs": 10**6}, "prompt_logprobs"),
        ({"min_tokens": 10**9, "max_tokens": None}, "min_tokens"),
        ({"stop_token_ids": (10**6,)}, "stop_token_ids"),
        ({"logit_bias": {10**6: 1.0}}, "logit_bias"),
        ({"logprob_token_ids": (10**6,)}, "logprob_token_ids"),
        ({"allowed_token_ids": (10**6,)}, "allowed_token_ids"),
        ({"n": 2}, "n"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(client, given: dict, field: str) -> None:
    with pytest.raises(RequestError, match=f"^{field}") as caught:
        client.submit(PROMPT, SamplingParams(**given))
    assert caught.value.param == field
    assert client.num_requests == 0


def test_ids_between_tokenizer_and_logits_are_refused(client) -> None:
    gap = client.tokenizer.vocab_size
    if gap < client.facts.vocab_size:
        with pytest.raises(RequestError, match="allowed_token_ids"):
            client.submit(PROMPT, SamplingParams(allowed_token_ids=(gap,)))


def test_priority_needs_its_policy(client, any_model) -> None:
    with pytest.raises(RequestError, match="scheduling_policy=priority"):
        client.submit(PROMPT, SamplingParams(), priority=1)
    with EngineClient(EngineConfig(model=str(any_model), scheduling_policy="priority")) as other:
        assert isinstance(list(other.submit(PROMPT, SamplingParams(max_tokens=2), priority=-5))[-1], Finished)


def test_forms_are_spelled_in_the_models_own_tokens(client) -> None:
    """ids and bytes differ here, and what a form forces comes in long tokens."""
    text = "the cat sat on the mat, the cat sat on the mat"
    wanted = SamplingParams(structured_outputs=StructuredOutputs(regex=f"(AB|xy): {text}"), max_tokens=None)
    *deltas, end = client.submit(PROMPT, wanted)
    said = "".join(event.text for event in deltas)
    assert said in (f"AB: {text}", f"xy: {text}")
    assert end.usage.completion_tokens <= len(client.tokenizer.encode(said)) + 2


async def test_structured_output_is_checked_before_and_in_the_engine(client) -> None:
    good, bad = StructuredOutputs(choice=("red", "blue")), StructuredOutputs(regex="(")
    await client.acheck_structured(good)
    with pytest.raises(RequestError, match="unclosed group"):
        await client.acheck_structured(bad)
    events = [event async for event in client.submit(PROMPT, SamplingParams(structured_outputs=good))]
    assert "".join(event.text for event in events[:-1]) in ("red", "blue")
    (failed,) = [event async for event in client.submit(PROMPT, SamplingParams(structured_outputs=bad))]
    assert failed.status == 400
    with pytest.raises(RequestError, match=r"^structured_outputs_config: backend"):
        EngineClient(EngineConfig(structured_outputs_config={"backend": "outlines"}))


def test_engines_do_one_thing(client, embedder) -> None:
    with pytest.raises(RequestError, match="runner=pooling"):
        client.submit(PROMPT, SamplingParams(), pooling=PoolingParams())
    with pytest.raises(RequestError, match="generates nothing"):
        embedder.submit(PROMPT, SamplingParams())
    with pytest.raises(RequestError, match="Matryoshka"):
        embedder.submit(PROMPT, SamplingParams(), pooling=PoolingParams(dimensions=4))
    with pytest.raises(RequestError, match="65 tokens"):
        embedder.submit(Prompt((1,) * 65), SamplingParams(), pooling=PoolingParams())
    vector, _ = embedder.submit(Prompt((1,) * 64), SamplingParams(), pooling=PoolingParams())
    assert vector.data.shape == (embedder.facts.hidden_size,)
    assert (vector.data**2).sum() == pytest.approx(1.0, abs=1e-4)


def test_poolers_are_read_from_checkpoint_and_config(tmp_path) -> None:
    def read(hf: dict | None = None, **pooler: object) -> PoolerConfig | None:
        return read_pooler(tmp_path, hf or {}, EngineConfig(runner="pooling", pooler_config=pooler))

    assert read_pooler(tmp_path, {}, EngineConfig()) is None
    assert read() == PoolerConfig("LAST", True, ())
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Pooling"}]')
    assert read({"matryoshka_dimensions": [64, 128]}) == PoolerConfig("MEAN", False, (64, 128))
    assert read({"is_matryoshka": True}, pooling_type="CLS", normalize=True) == PoolerConfig("CLS", True, None)
    with pytest.raises(CheckpointError, match="STEP"):
        read(pooling_type="STEP")
    with pytest.raises(CheckpointError, match="'step_tag'"):
        read(step_tag=1)
