"""Sampling parameters: what is refused where they are made, by field and value, and what is brought into one form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sensorium.errors import RequestError
from sensorium.params import BeamSearchParams, PoolingParams, SamplingParams, StructuredOutputs

BAD = [
    *(("temperature", value) for value in (math.nan, math.inf, -1.0, 1e308, 2.0001, "1", True, None)),
    *(("top_p", value) for value in (0.0, 1.0000001, -0.1, math.nan)),
    *(("top_k", value) for value in (-2, 1 << 31, 1.5)),
    *(("min_p", value) for value in (2.0, -0.1, math.nan)),
    *(("presence_penalty", value) for value in (math.nan, math.inf, -2.1, 1e9)),
    *(("frequency_penalty", value) for value in (math.nan, 2.1)),
    *(("repetition_penalty", value) for value in (0.0, -1.0, math.nan, math.inf, 1e9)),
    *(("n", value) for value in (0, -1, 10**9, 1.0)),
    *(("best_of", value) for value in (0, 2)),
    *(("max_tokens", value) for value in (0, -1, 1 << 63, "5")),
    *(("min_tokens", value) for value in (-1, 17)),
    *(("logit_bias", value) for value in ({-1: 1.0}, {"abc": 1.0}, {1 << 40: 1.0}, {1: math.nan}, [1], {1: "x"})),
    ("logit_bias", dict.fromkeys(range(10_000), 1.0)),
    *(("stop", value) for value in ([""], ["x"] * 10_000, "x" * 1_000_000, [1], 3)),
    *(("stop_token_ids", value) for value in ([-1], ["a"], [1 << 40], "12")),
    *(("bad_words", value) for value in ([""], [" "], ["w"] * 10_000)),
    *(("allowed_token_ids", value) for value in ([], [-1], ["a"])),
    *(("logprobs", value) for value in (-2, 1.5)),
    *(("prompt_logprobs", value) for value in (-2, "all")),
    ("logprob_token_ids", list(range(129))),
    *(("seed", value) for value in (1 << 64, math.nan, "7")),
    *(("thinking_token_budget", value) for value in (-2, 1.5)),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda value: repr(value)[:24])
def test_a_bad_value_is_refused_by_field_and_value(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{field}") as caught:
        SamplingParams(**{field: value})  # pyright: ignore
    assert isinstance(caught.value, RequestError)
    assert caught.value.param == field
    assert len(str(caught.value)) < 300


def test_lists_and_single_values_become_tuples() -> None:
    params = SamplingParams(stop="end", stop_token_ids=[3, 1, 3], bad_words=["a"], allowed_token_ids=[1, 1, 2])  # pyright: ignore
    assert (params.stop, params.stop_token_ids) == (("end",), (3, 1))
    assert (params.bad_words, params.allowed_token_ids) == (("a",), (1, 2))
    assert SamplingParams(stop=None, stop_token_ids=None, logit_bias=None) == SamplingParams()  # pyright: ignore
    assert replace(params, top_k=5).stop == ("end",), "what was normalised once stays as it is"


def test_values_that_mean_something_else() -> None:
    assert SamplingParams(seed=-1).seed is None
    assert SamplingParams(temperature=0.005).temperature == 0.01
    assert SamplingParams(temperature=1e-45).is_greedy
    assert SamplingParams(thinking_token_budget=-1).thinking_token_budget is None
    assert SamplingParams(logit_bias={"7": 101, 8: -1e9}).logit_bias == {7: 100.0, 8: -100.0}  # pyright: ignore
    assert SamplingParams(n=3, best_of=3).n == 3


def test_fields_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"^n: must be 1 where temperature is 0"):
        SamplingParams(n=2, temperature=0.0)
    with pytest.raises(ValueError, match=r"^best_of: 4 must equal n"):
        SamplingParams(n=2, best_of=4)
    with pytest.raises(ValueError, match=r"^stop: needs detokenize"):
        SamplingParams(stop=("x",), detokenize=False)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"json": "{}", "regex": "a"},
        {"json": "{"},
        {"json": "[1]"},
        {"json": "[" * 10_000 + "]" * 10_000},
        {"json": {"a": {"b": [[[[]]]] * 2}} | {"x": eval("[" * 80 + "]" * 80)}},
        {"regex": ""},
        {"grammar": ""},
        {"choice": []},
        {"choice": ["a", ""]},
        {"choice": [1]},
        {"json_object": False},
    ],
    ids=lambda value: repr(value)[:24],
)
def test_structured_outputs_are_checked(given: dict) -> None:
    with pytest.raises(ValueError, match=r"^structured_outputs"):
        StructuredOutputs(**given)


def test_structured_outputs_keep_a_schema_as_text() -> None:
    made = StructuredOutputs(json={"type": "object"}, after=[5, 5])  # pyright: ignore
    assert (made.json, made.after) == ('{"type": "object"}', (5, 5))
    assert hash(made) == hash(replace(made))


def test_beam_and_pooling_values_are_checked() -> None:
    for given in ({"beam_width": 0}, {"beam_width": 10**6}, {"beam_width": 2, "repetition_penalty": 0.5}):
        with pytest.raises(ValueError, match=list(given)[-1]):
            BeamSearchParams(**given)
    with pytest.raises(ValueError, match=r"^task"):
        PoolingParams(task="classify")  # pyright: ignore
    with pytest.raises(ValueError, match=r"^dimensions"):
        PoolingParams(dimensions=0)
