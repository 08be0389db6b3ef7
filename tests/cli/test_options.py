"""Flags and the configurations they make."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from sensorium.cli.options import HELP, add_flags, build
from sensorium.cli.parser import Parser, integer, normalise
from sensorium.config import EngineConfig, MediaLimits, ServerConfig

CONFIGS = (ServerConfig, EngineConfig, MediaLimits)
# Given by position, and built from flags of its own.
NO_FLAG = {"model", "limits"}


@pytest.fixture
def parser() -> Parser:
    made = Parser(prog="test")
    for config in CONFIGS:
        add_flags(made, config, config.__name__)
    return made


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_a_flag(config):
    assert set(HELP[config]) <= {field.name for field in fields(config)} - NO_FLAG


@pytest.mark.parametrize("config", CONFIGS)
def test_no_flags_is_the_default_configuration(parser, config):
    assert build(config, parser.parse_args([])) == config()


def test_flags_reach_their_fields(parser):
    words = "--port 9 --api-key a b --max-num-seqs 3 --no-enable-prefix-caching --dtype bfloat16 --max-audio-s 1.5"
    words += " --allowed-local-media-path media --max-media-bytes 2M --log-format json --max-model-len 8k"
    args = parser.parse_args(words.split())
    assert build(ServerConfig, args) == ServerConfig(port=9, api_keys=("a", "b"), log_format="json")
    limits = MediaLimits(max_audio_s=1.5, allowed_local_path=Path("media"), max_bytes=2 << 20)
    assert build(MediaLimits, args) == limits
    engine = EngineConfig(
        model="m", max_num_seqs=3, enable_prefix_caching=False, dtype="bfloat16", max_model_len=8000, limits=limits
    )
    assert build(EngineConfig, args, model="m", limits=limits) == engine


def test_underscores_are_dashes_but_not_in_values():
    assert normalise(["a_b", "--max_model_len", "x_y", "--host=a_b"]) == ["a_b", "--max-model-len", "x_y", "--host=a_b"]


@pytest.mark.parametrize(
    ("text", "value"), [("12", 12), ("-1", -1), ("8k", 8000), ("8K", 8192), ("25.6k", 25600), ("2G", 2 << 30)]
)
def test_whole_numbers(text, value):
    assert integer(text) == value


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--port", "x"), ("--port", "1.5"), ("--max-audio-s", "nan"), ("--dtype", "int8"), ("--max-num-seqs", "")],
)
def test_a_bad_value_is_refused_with_its_flag(parser, capsys, flag, value):
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args([flag, value])
    assert exit_.value.code == 2
    assert flag in capsys.readouterr().err


def test_an_unknown_flag_is_refused_with_the_nearest_one(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-model-length", "3"])
    assert capsys.readouterr().err == (
        "test: error: unrecognized arguments: --max-model-length 3 (did you mean --max-model-len?)\n"
    )
