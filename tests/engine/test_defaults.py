"""What generation_config.json says is what a request without sampling values gets."""

from __future__ import annotations

import json

import pytest

from sensorium.engine.defaults import read_default_sampling
from sensorium.errors import CheckpointError
from sensorium.types import SamplingParams


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"temperature": 1, "top_k": 20, "eos_token_id": 3}, {"temperature": 1.0, "top_k": 20}),
        ({"do_sample": True, "temperature": 0.6, "repetition_penalty": None}, {"temperature": 0.6}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
    ],
)
def test_values_of_the_file(tmp_path, config, expected):
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert read_default_sampling(tmp_path) == SamplingParams(max_tokens=None, **expected)


def test_without_the_file_and_with_a_broken_one(tmp_path):
    assert read_default_sampling(tmp_path) == SamplingParams(max_tokens=None)
    for broken in ("{", "[]", '{"top_k": "many"}', '{"temperature": []}'):
        (tmp_path / "generation_config.json").write_text(broken)
        with pytest.raises(CheckpointError, match="generation_config"):
            read_default_sampling(tmp_path)
