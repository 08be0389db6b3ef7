"""What is read off hidden rows: scored prompts, embeddings, and prompts that several requests compute once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small import drive, image, prompt, request, tokens

from sensorium.engine.pooler_config import PoolerConfig
from sensorium.engine.pooling import Pooler
from sensorium.kernels.reference import PagedPlan
from sensorium.types import (
    Finished,
    ModelInputs,
    Pooled,
    PoolingParams,
    PromptScored,
    Request,
    SamplingParams,
    TextDelta,
)

TEXT = prompt("the quick brown fox jumps over the lazy dog and runs away from the rain ")
MIXED = prompt("look at this ", image(3))


@torch.inference_mode()
def hidden_of(model, made) -> torch.Tensor:
    """All hidden rows of a prompt, computed at once and without an engine."""
    count = len(made.ids)
    x = model.embed(torch.tensor(made.ids))
    for span in made.spans:
        x[span.start : span.stop] = model.encode("image", [made.media[span.media]])[0]
    blocks = -(-count // 16)
    shape = (2, blocks, 16, model.num_kv_heads, model.head_dim)
    kv = [torch.zeros(shape) for _ in range(model.num_layers)]
    plan = PagedPlan([count], [count], [list(range(blocks))], 16, torch.device("cpu"))
    return model.forward(x, ModelInputs(torch.arange(count), plan, kv))


# ---- scored prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [TEXT, MIXED], ids=["text", "picture"])
@pytest.mark.parametrize("chunk", [7, 2048])
def test_prompt_logprobs_equal_a_float32_reference(make_engine, model, made, chunk) -> None:
    engine = make_engine(max_num_batched_tokens=chunk)
    drive(engine, request("warm", made))
    events = drive(engine, request("a", made, prompt_logprobs=3, logprob_token_ids=(5, 6)))["a"]
    scored, first = events[:2]
    assert isinstance(scored, PromptScored), "before the first text"
    assert isinstance(first, TextDelta)
    assert events[-1].usage.cached_tokens == 0, "every position is computed"
    with torch.inference_mode():
        table = model.logits(hidden_of(model, made)).float().log_softmax(-1)
    assert scored.logprobs[0] is None
    assert len(scored.logprobs) == len(made.ids)
    for at, entry in enumerate(scored.logprobs[1:]):
        row, token = table[at], made.ids[at + 1]
        assert entry is not None
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert abs(entry.rank - int((row > row[token]).sum()) - 1) <= 1
        values, ids = zip(*((value, token) for token, value in entry.top), strict=True)
        assert torch.allclose(torch.tensor(values[:3]), row.topk(3).values, atol=1e-4)
        assert ids[3:] == (5, 6)
        assert values[3] == pytest.approx(row[5].item(), abs=1e-4)


def test_prompt_logprobs_survive_a_preemption(make_engine) -> None:
    wanted = [request(f"r{i}", prompt(f"{i} " + "word " * 20), prompt_logprobs=1, max_tokens=80) for i in range(3)]
    roomy = drive(make_engine(), *wanted)
    tight_engine = make_engine(num_blocks=24, max_num_batched_tokens=48)
    tight = drive(tight_engine, *wanted)
    assert tight_engine.stats.preemptions > 0
    for name, events in tight.items():
        assert [type(e) for e in events].count(PromptScored) == 1
        mine, theirs = events[0].logprobs[1:], roomy[name][0].logprobs[1:]
        assert [e.token_id for e in mine] == [e.token_id for e in theirs]
        assert [e.logprob for e in mine] == pytest.approx([e.logprob for e in theirs], abs=1e-4)
        assert tokens(events) == tokens(roomy[name])


# ---- one prefill for several ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [40, 2048])
def test_n_answers_compute_their_prompt_once(make_engine, chunk) -> None:
    made = prompt("x" * 500, image(1))
    sampling = SamplingParams(n=5, seed=9, temperature=1.0, max_tokens=12, ignore_eos=True)
    choices = [Request(f"c{i}", made, sampling.choice(i)) for i in range(5)]
    engine = make_engine(max_num_batched_tokens=chunk)
    together = drive(engine, *choices)
    computed = engine.stats.prompt_tokens
    assert computed <= len(made.ids) + 4 * engine.scheduler.pool.block_size
    assert engine.stats.encoded_items == 1
    solo = [tokens(drive(make_engine(), choice)[choice.id]) for choice in choices]
    assert [tokens(together[choice.id]) for choice in choices] == solo
    assert len(set(map(tuple, solo))) > 1, "each choice has a seed of its own"
    engine.scheduler.check()


def test_a_choice_takes_over_when_the_first_is_aborted(make_engine) -> None:
    from sensorium.engine.protocol import Abort

    made = prompt("y" * 300)
    engine = make_engine(max_num_batched_tokens=64)
    engine.inbox.extend(request(f"c{i}", made) for i in range(3))
    engine.step()
    engine.inbox.append(Abort("c0"))
    events = []
    while engine.has_work:
        events += engine.step()
    ends = {e.request_id: e.reason for e in events if isinstance(e, Finished)}
    assert ends == {"c0": "abort", "c1": "length", "c2": "length"}


def test_a_short_common_beginning_keeps_nobody_waiting(make_engine) -> None:
    engine = make_engine()
    engine.inbox.extend(request(f"r{i}", prompt("a" * 20 + f"{i}" * 100)) for i in range(4))
    events = engine.step()
    assert {event.request_id for event in events} == {f"r{i}" for i in range(4)}


# ---- priorities ---------------------------------------------------------------------------------------------------


def test_the_least_urgent_steps_back(make_engine) -> None:
    def urgent(name: str, priority: int) -> Request:
        sampling = SamplingParams(temperature=0.0, max_tokens=100, ignore_eos=True)
        return Request(name, prompt(name * 40), sampling, priority=priority)

    engine = make_engine(num_blocks=16)
    engine.inbox.extend((urgent("b", 5), urgent("a", 1), urgent("c", 9)))
    ended = []
    while engine.has_work:
        ended += [event.request_id for event in engine.step() if isinstance(event, Finished)]
    assert engine.stats.preemptions > 0
    assert ended == ["a", "b", "c"]


# ---- embeddings ---------------------------------------------------------------------------------------------------


def pooled(engine, made, **params) -> np.ndarray:
    wanted = Request("p", made, SamplingParams(max_tokens=1), pooling=PoolingParams(**params))
    vector, end = drive(engine, wanted)["p"]
    assert isinstance(vector, Pooled)
    assert isinstance(end, Finished)
    assert (end.reason, end.usage.prompt_tokens, end.usage.completion_tokens) == ("stop", len(made.ids), 0)
    return vector.data


@pytest.mark.parametrize("kind", ["LAST", "MEAN", "CLS"])
@pytest.mark.parametrize("chunk", [9, 2048])
@pytest.mark.parametrize("made", [TEXT, MIXED], ids=["text", "picture"])
def test_a_vector_equals_the_hidden_rows_it_is_made_of(make_engine, model, kind, chunk, made) -> None:
    engine = make_engine(max_num_batched_tokens=chunk)
    engine.runner.readout.pooler = Pooler(PoolerConfig(kind))
    drive(engine, request("warm", made))  # nothing wrong may come out of the prefix cache
    rows = hidden_of(model, made)
    expected = {"LAST": rows[-1], "MEAN": rows.mean(0), "CLS": rows[0]}[kind]
    assert pooled(engine, made, normalize=False) == pytest.approx(expected.numpy(), abs=1e-4)
    unit = torch.nn.functional.normalize(expected, dim=-1).numpy()
    assert pooled(engine, made) == pytest.approx(unit, abs=1e-5)
    assert pooled(engine, made, task="token_embed", normalize=False) == pytest.approx(rows.numpy(), abs=1e-4)
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
    assert not engine.runner.readout.states


def test_a_shorter_vector_is_cut_and_then_normalised(make_engine, model) -> None:
    engine = make_engine()
    engine.runner.readout.pooler = Pooler(PoolerConfig(dimensions=None))
    cut = hidden_of(model, TEXT)[-1, :8]
    expected = (cut / cut.norm()).numpy()
    assert pooled(engine, TEXT, dimensions=8) == pytest.approx(expected, abs=1e-5)


def test_embeddings_and_answers_share_steps(make_engine) -> None:
    alone = tokens(drive(make_engine(), request("a", MIXED))["a"])
    engine = make_engine(max_num_batched_tokens=32)
    engine.runner.readout.pooler = Pooler(PoolerConfig("MEAN"))
    vectors = [Request(f"p{i}", TEXT, SamplingParams(), pooling=PoolingParams()) for i in range(3)]
    events = drive(engine, *vectors, request("a", MIXED))
    assert tokens(events["a"]) == alone
    assert np.array_equal(events["p0"][0].data, events["p1"][0].data) or np.allclose(
        events["p0"][0].data, events["p1"][0].data, atol=1e-5
    )
