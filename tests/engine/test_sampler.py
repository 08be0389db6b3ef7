"""Sampling against its definition, row by row independent of the batch."""

from __future__ import annotations

import math
from collections import Counter
from typing import get_args

import pytest
import torch

from sensorium.config import LogprobsMode
from sensorium.engine.rules import BadWords, ThinkingBudget
from sensorium.engine.sampler import NOT_A_NUMBER, NOTHING_LEFT, SampleState, sample
from sensorium.types import SamplingParams

MODES = get_args(LogprobsMode)
LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def state(prompt: tuple[int, ...] = (), barred: tuple[int, ...] = (), **params) -> SampleState:
    return SampleState(SamplingParams(**params), prompt, barred)


def draw(n: int, **params) -> Counter[int]:
    """n tokens, each with its own seed, in one batch."""
    states = [state(seed=seed, **params) for seed in range(n)]
    return Counter(token for token, _ in sample(LOGITS.repeat(n, 1), states))


def test_temperature_zero_takes_the_largest() -> None:
    assert sample(LOGITS[None], [state(temperature=0.0)]) == [(0, None)]


def test_frequencies_follow_the_softmax() -> None:
    counts = draw(4000, temperature=1.5)
    expected = (LOGITS / 1.5).softmax(-1)
    for token, share in enumerate(expected.tolist()):
        assert abs(counts[token] / 4000 - share) < 4 * math.sqrt(share * (1 - share) / 4000) + 1e-3


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.85}, {0, 1, 2}),
        ({"min_p": 0.2}, {0, 1, 2}),
        ({"top_k": 4, "top_p": 0.99}, {0, 1, 2, 3}),
        ({"top_k": 1, "temperature": 2.0}, {0}),
    ],
)
def test_filters_keep_exactly_the_allowed_tokens(params: dict, allowed: set[int]) -> None:
    assert set(draw(2000, **params)) == allowed


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("params", [{"top_p": 0.9}, {"top_k": 300}, {"top_k": 50, "top_p": 0.7}, {"top_p": 0.3}])
def test_a_large_vocabulary_is_filtered_exactly(scale: float, params: dict) -> None:
    torch.manual_seed(1)
    logits = torch.randn(1000) * scale
    probs, order = logits.softmax(-1).sort(descending=True)
    top_k = params.get("top_k", 1000)
    probs = probs[:top_k] / probs[:top_k].sum()
    num_kept = int((probs.cumsum(-1) - probs < params.get("top_p", 1.0)).sum())
    allowed = set(order[:num_kept].tolist())
    drawn = {token for token, _ in sample(logits.repeat(3000, 1), [state(seed=i, **params) for i in range(3000)])}
    assert drawn <= allowed
    assert probs[[order.tolist().index(token) for token in drawn]].sum() / probs[:num_kept].sum() > 0.8


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 400)
    kinds = [
        {"seed": 1}, {"seed": 2, "top_k": 5}, {"temperature": 0.0}, {"seed": 4, "top_p": 0.4, "temperature": 0.7},
        {"seed": 5, "presence_penalty": 1.0, "min_p": 0.01},
    ]  # fmt: skip
    together = [state(**kind) for kind in kinds]
    alone = [state(**kind) for kind in kinds]
    for _ in range(20):
        assert sample(logits, together) == [sample(logits[i : i + 1], [alone[i]])[0] for i in range(5)]


def test_the_same_seed_gives_the_same_tokens() -> None:
    runs = []
    for _ in range(2):
        one = state(seed=11, temperature=2.0)
        runs.append([sample(LOGITS[None], [one])[0] for _ in range(30)])
    assert runs[0] == runs[1]


def test_penalties_count_what_vllm_counts() -> None:
    one = state(prompt=(0,), temperature=0.0, repetition_penalty=4.0)
    assert sample(LOGITS[None], [one])[0] == (1, None), "the prompt's token is divided by the penalty"
    other = state(prompt=(0,), temperature=0.0, repetition_penalty=4.0, penalize_prompt=False)
    assert [sample(LOGITS[None], [other])[0][0] for _ in range(2)] == [0, 1]
    frequent = state(temperature=0.0, frequency_penalty=0.6)
    assert [sample(LOGITS[None], [frequent])[0][0] for _ in range(4)] == [0, 0, 1, 0]


def test_bias_and_min_tokens() -> None:
    assert sample(LOGITS[None], [state(temperature=0.0, logit_bias={4: 10.0})])[0] == (4, None)
    one = state(barred=(0, 1), temperature=0.0, min_tokens=2)
    assert [sample(LOGITS[None], [one])[0][0] for _ in range(3)] == [2, 2, 0]


def test_logprobs_describe_the_untouched_distribution() -> None:
    one = state(temperature=0.0, logprobs=2, logit_bias={3: 10.0})
    token, logprob = sample(LOGITS[None], [one])[0]
    expected = LOGITS.log_softmax(-1)
    assert token == 3
    assert logprob.logprob == pytest.approx(expected[3].item())
    assert [t for t, _ in logprob.top] == [0, 1]


def test_a_row_of_nan_fails_alone() -> None:
    logits = torch.stack([LOGITS, LOGITS])
    logits[0, 2] = math.nan
    assert sample(logits, [state(temperature=0.0), state(temperature=0.0)]) == [NOT_A_NUMBER, (0, None)]


def test_allowed_ids_and_barred_words() -> None:
    assert sample(LOGITS[None], [state(temperature=0.0, allowed_token_ids=(2, 5))])[0] == (2, None)
    one = SampleState(SamplingParams(temperature=0.0), (), (), bad_words=BadWords(((0, 0, 1), (2,))))
    assert [sample(LOGITS[None] * torch.tensor([1, 1, 9, 1, 1, 1]), [one])[0][0] for _ in range(2)] == [0, 0]
    after = sample(torch.tensor([[1.0, 5.0, 9.0, 0.0, 0.0, 0.0]]), [one])[0]
    assert after == (0, None), "1 would complete the word, 2 is one"


def test_a_row_that_may_choose_nothing_fails_alone() -> None:
    nothing = SampleState(
        SamplingParams(allowed_token_ids=(1,), seed=1, top_p=0.5), (), (), bad_words=BadWords(((1,),))
    )
    assert sample(LOGITS.repeat(2, 1), [nothing, state(temperature=0.0)]) == [NOTHING_LEFT, (0, None)]


@pytest.mark.parametrize("is_open", [True, False])
def test_a_thinking_budget_forces_the_end(is_open: bool) -> None:
    budget = ThinkingBudget(2, start=(4,), end=(5,), is_open=is_open)
    one = SampleState(SamplingParams(temperature=0.0), (), (), thinking=budget)
    steps = [LOGITS] if is_open else [torch.eye(6)[4] * 9, LOGITS]
    chosen = [sample(row[None], [one])[0][0] for row in [*steps, LOGITS, LOGITS, LOGITS]]
    assert chosen == ([0, 0, 5, 0] if is_open else [4, 0, 0, 5, 0])


def test_an_end_of_several_tokens_is_forced_whole() -> None:
    budget = ThinkingBudget.after_prompt(1, ((1, 2), (3, 4)), (9, 1, 2))
    forced = []
    for token in (7, 3, 4, 7):
        forced.append(budget.forced())
        budget.accept(forced[-1] if forced[-1] is not None else token)
    assert forced == [None, 3, 4, None]
    assert not ThinkingBudget.after_prompt(1, ((1, 2), (3, 4)), (1, 2, 3, 4)).is_open


def test_logprobs_have_ranks_and_named_tokens() -> None:
    one = state(temperature=0.0, logprobs=1, logprob_token_ids=(5, 4), logit_bias={3: 10.0})
    token, logprob = sample(LOGITS[None], [one])[0]
    assert (token, logprob.rank) == (3, 4)
    assert [t for t, _ in logprob.top] == [0, 5, 4]
    everything = sample(LOGITS[None], [state(temperature=0.0, logprobs=-1)])[0][1]
    assert [t for t, _ in everything.top] == [0, 1, 2, 3, 4, 5]


def test_logprob_modes() -> None:
    params = {"temperature": 0.5, "top_k": 2, "logprobs": 3, "seed": 0, "logit_bias": {0: -100.0}}
    found = {mode: sample(LOGITS[None], [state(**params)], mode)[0][1].top for mode in MODES}
    assert found["raw_logits"][0] == (0, 2.0)
    assert found["processed_logits"][:2] == ((1, 2.0), (2, 1.0))
    expected = (LOGITS[1:3] / 0.5).log_softmax(-1).tolist()
    assert [value for _, value in found["processed_logprobs"][:2]] == pytest.approx(expected)
    assert found["processed_logprobs"][2][1] == -math.inf
    assert found["raw_logprobs"][0][1] == pytest.approx(LOGITS.log_softmax(-1)[0].item())


def test_the_order_of_edits() -> None:
    """Bias before penalties: a token lifted above zero by its bias is divided, not multiplied."""
    one = state(prompt=(4,), temperature=0.0, logprobs=1, repetition_penalty=2.0, logit_bias={4: 9.0})
    token, logprob = sample(LOGITS[None], [one], "processed_logits")[0]
    assert (token, logprob.logprob) == (4, 4.0)
