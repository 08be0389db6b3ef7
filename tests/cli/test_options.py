"""Flags and the configurations they make."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from sensorium.cli import serve
from sensorium.cli.flags import COMMON, FLAGS, SHORT
from sensorium.cli.options import build, settings
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer
from sensorium.compat import MOVED, NO_EFFECT, REFUSED
from sensorium.config import FIT, EngineConfig, MediaLimits, ServerConfig
from sensorium.envs import Environment
from sensorium.errors import ConfigError

CONFIGS = (ServerConfig, EngineConfig, MediaLimits)
# Given by position, and built from flags of its own.
NO_FLAG = {"model", "limits"}
SURFACE = Path(__file__).parents[3] / "shared" / "spec" / "vllm-surface.json"


@pytest.fixture
def parser() -> Parser:
    made = Parser(prog="test", usage="test", common=COMMON)
    serve.add_arguments(made)
    return made


@pytest.fixture
def parse(parser):
    def run(*words: str) -> tuple[EngineConfig, ServerConfig]:
        return serve.configure(settings(parser, parser.parse_args(list(words))), Environment())

    return run


def status_of(parse, *words: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        parse(*words)
    return exit_.value.code


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_has_a_flag(config):
    names = [name for flags in FLAGS[config].values() for name in flags]
    assert len(names) == len(set(names))
    assert set(names) == {field.name for field in fields(config)} - NO_FLAG


@pytest.mark.parametrize("config", CONFIGS)
def test_no_flags_is_the_default_configuration(parser, config):
    assert build(config, vars(parser.parse_args([]))) == config()


def test_flags_reach_their_fields(parse):
    words = "m --port 9 --api-key a b --max-num-seqs 3 --no-enable-prefix-caching --dtype bfloat16 --max-audio-s 1.5"
    words += " --allowed-local-media-path . --max-media-bytes 2M --log-format json --max-model-len 8k"
    engine, server = parse(*words.split())
    assert server == ServerConfig(port=9, api_keys=("a", "b"), log_format="json")
    limits = MediaLimits(max_audio_s=1.5, allowed_local_path=Path("."), max_bytes=2 << 20)
    assert engine == EngineConfig(
        model="m",
        max_num_seqs=3,
        enable_prefix_caching=False,
        dtype="bfloat16",
        max_model_len=8000,
        limits=limits,
        enable_mm_embeds=False,  # over HTTP only where it is asked for
    )


@pytest.mark.skipif(not SURFACE.is_file(), reason="the study of vLLM's flags is not there")
def test_every_flag_of_vllm_is_known(parser):
    table = json.loads(SURFACE.read_text())["flags"]
    names = [flag["name"] for flag in table] + [name for flag in table for name in flag["aliases"]]
    names = [name.partition(" ")[0] for name in names if name.startswith("-")]
    known = {*parser._option_string_actions, *SHORT, "--version", "-v"}
    assert sorted(name for name in names if name.partition("=")[0] not in known) == []


# ---- spelling -----------------------------------------------------------------------------------------------------


def test_underscores_are_dashes_but_not_in_values_or_behind_the_dot(parse):
    words = ("a_b", "--max_model_len", "9", "--host=a_b", "--mm_processor_kwargs.max_slice_nums=2")
    engine, server = parse(*words)
    assert (engine.model, engine.max_model_len, server.host) == ("a_b", 9, "a_b")
    assert engine.mm_processor_kwargs == {"max_slice_nums": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [("12", 12), ("-1", -1), ("8k", 8000), ("8K", 8192), ("25.6k", 25600), ("2G", 2 << 30), ("1.5m", 1_500_000)],
)
def test_whole_numbers(text, value):
    assert integer(text) == value


@pytest.mark.parametrize("text", ["auto", "-1"])
def test_a_context_may_be_what_fits(parse, text):
    assert parse("--max-model-len", text)[0].max_model_len == FIT


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--enable-log-requests", "enable_log_requests", True),
        ("--disable-log-requests", "enable_log_requests", False),
        ("--no-enable-log-requests", "enable_log_requests", False),
        ("--enable-log-stats", "disable_log_stats", False),
        ("--disable_prefix_caching", "enable_prefix_caching", False),
        ("--no-disable-log-stats", "disable_log_stats", False),
        ("--speech-output --no-speech-output", "init_tts", False),
    ],
)
def test_switches_have_both_directions(parse, words, field, value):
    assert getattr(parse(*words.split())[0], field) is value


def test_switches_of_opposite_meaning_share_a_field(parse):
    assert parse("--disable-uvicorn-access-log")[1].access_log is False
    assert parse("--no-block-private-media-ips")[0].limits.allow_private_addresses is True
    assert parse("--block-private-media-ips")[0].limits.allow_private_addresses is False


def test_sizes_and_lists_come_in_two_spellings(parse):
    assert parse("--max-request-body-mb", "2")[1].max_body_bytes == 2 << 20
    assert parse("--max-body-bytes", "2M")[1].max_body_bytes == 2 << 20
    assert parse("--allowed-origins", '["a", "b"]')[1].allowed_origins == ("a", "b")
    assert parse("--allowed-origins", "a", "b")[1].allowed_origins == ("a", "b")
    assert parse("--disable-access-log-for-endpoints", "/health,/metrics")[1].disable_access_log_for_endpoints == (
        "/health",
        "/metrics",
    )
    assert parse("--hf-token", "--port", "1")[0].hf_token is True
    assert parse("--hf-token", "abc")[0].hf_token == "abc"


# ---- JSON ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--limit-mm-per-prompt", '{"image": 5, "video": 2}'],
        ["--limit-mm-per-prompt.image", "5", "--limit_mm_per_prompt.video=2"],
        ["--limit-mm-per-prompt", '{"image": 1, "video": 2}', "--limit-mm-per-prompt.image", "5"],
        ["--limit-mm-per-prompt", "image=5,video=2"],
    ],
)
def test_objects_are_given_whole_by_keys_or_the_old_way(parse, words):
    assert parse(*words)[0].limit_mm_per_prompt == {"image": 5, "video": 2}


def test_objects_merge_deeply_and_lists_grow(parse):
    words = ["--media-io-kwargs", '{"video": {"num_frames": 8, "fps": 1}}', "--media-io-kwargs.video.fps", "2"]
    assert parse(*words)[0].media_io_kwargs == {"video": {"num_frames": 8, "fps": 2}}
    words = ["--hf-overrides.names+", "a", "--hf-overrides.names+=b,c", "--hf-overrides.text", "25.6k"]
    assert parse(*words)[0].hf_overrides == {"names": ["a", "b", "c"], "text": 25600}
    words = ["--default-chat-template-kwargs.enable_thinking", "false", "--default-chat-template-kwargs.name=x y"]
    assert parse(*words)[1].default_chat_template_kwargs == {"enable_thinking": False, "name": "x y"}


def test_what_is_given_twice_is_warned_about_and_the_last_counts(parse, capsys):
    assert parse("--port", "1", "--port", "2")[1].port == 2
    assert parse("--limit-mm-per-prompt.image", "1", "--limit-mm-per-prompt.image", "2")[0].limit_mm_per_prompt == {
        "image": 2
    }
    warnings = capsys.readouterr().err
    assert "--port is given twice" in warnings
    assert "--limit-mm-per-prompt.image is given twice" in warnings


# ---- the file -----------------------------------------------------------------------------------------------------


def test_flags_come_from_a_file_and_the_command_line_wins(parse, tmp_path, capsys):
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: from-file\nport: 7\nmax_model_len: 8k\nenable-prefix-caching: false\napi-key: [a, b]\n"
        "limit-mm-per-prompt:\n  image: 2\n  video: 1\nseed: 5\n"
    )
    engine, server = parse("--config", str(file), "--port", "9", "--limit-mm-per-prompt.video", "3")
    assert (engine.model, engine.max_model_len, engine.seed) == ("from-file", 8000, 5)
    assert (server.port, server.api_keys) == (9, ("a", "b"))
    assert engine.limit_mm_per_prompt == {"image": 2, "video": 3}
    assert not engine.enable_prefix_caching
    assert parse("mine", f"--config={file}")[0].model == "mine"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", "{}"), ("a.yaml", "- a"), ("a.yaml", "a: ["), ("a.yml", "no_such_flag: 1")]
)
def test_a_file_that_cannot_be_used_ends_with_2(parse, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert status_of(parse, "--config", str(tmp_path / name)) == 2
    assert status_of(parse, "--config", str(tmp_path / "missing.yaml")) == 2


def test_two_files_are_one_too_many(parse, tmp_path):
    (tmp_path / "a.yaml").write_text("port: 1")
    assert status_of(parse, "--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "a.yaml")) == 2


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--port", "x"),
        ("--port", "1.5"),
        ("--port", "70000"),
        ("--max-audio-s", "nan"),
        ("--dtype", "int8"),
        ("--max-num-seqs", ""),
        ("--max-num-batched-tokens", "2.5K"),
        ("--gpu-memory-utilization", "0"),
        ("--gpu-memory-utilization", "1.5"),
        ("--mm-processor-cache-gb", "-1"),
        ("--limit-mm-per-prompt", "{image: 2}"),
        ("--limit-mm-per-prompt", '{"image": -2}'),
        ("--limit-mm-per-prompt", "[]"),
        ("--default-chat-template-kwargs", "x"),
        ("--runner", "draft"),
        ("--convert", "classify"),
        ("--uvicorn-log-level", "loud"),
        ("--sse-keep-alive-interval", "-1"),
        ("--max-lora-rank", "3"),
        ("--task", "dance"),
        ("--optimization-level", "9"),
        ("--optimization-level", "fast"),
        ("--compilation-config", "fast"),
        ("--compilation-config", "[0]"),
        ("--allowed-local-media-path", "/no/such/folder"),
        ("--chat-template", "no-such-template.jinja"),
        ("--tensor-parallel-size", "2"),
        ("--quantization", "awq"),
        ("--speculative-config", '{"model": "x"}'),
        ("--lora-modules", "a=b"),
        ("--kv-cache-dtype", "fp8"),
        ("--cpu-offload-gb", "4"),
        ("--uds", "/tmp/socket"),
        ("--stream-interval", "0"),
        ("--middleware", "my.Auth"),
        ("--device-ids", "0,1"),
    ],
)
def test_a_bad_value_is_refused_with_its_flag(parser, capsys, flag, value):
    with pytest.raises((SystemExit, ConfigError)) as refused:
        serve.configure(settings(parser, parser.parse_args([flag, value])), Environment())
    if refused.type is SystemExit:
        assert refused.value.code == 2
        assert flag in capsys.readouterr().err
    else:  # the command prints it the same way, see the next test
        assert refused.value.param == flag.removeprefix("--").replace("-", "_").replace("media_", "", 1) or (
            refused.value.param == flag.removeprefix("--").replace("-", "_")
        )


def test_settings_that_contradict_each_other_blame_no_flag(parse):
    for words in (["--enable-auto-tool-choice"], ["--ssl-keyfile", "x"]):
        with pytest.raises(ConfigError, match="needs") as caught:
            parse(*words)
        assert caught.value.param is None


def test_an_unknown_flag_is_refused_with_the_nearest_one(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-model-length", "3"])
    assert capsys.readouterr().err == (
        "usage: test\ntest: error: unrecognized arguments: --max-model-length (did you mean --max-model-len?)\n"
    )


# ---- vLLM's other flags -------------------------------------------------------------------------------------------


def test_short_forms_and_values_that_change_nothing_pass_in_silence(parse, capsys):
    parse("m", "-tp", "1", "-pp=1", "-dp", "1", "-O2", "--kv-cache-dtype", "auto", "--mm-encoder-tp-mode", "weights")
    assert capsys.readouterr().err == ""


def test_flags_without_effect_say_so_once(parse, capsys):
    parse("m", "-O3", "-cc.mode=3", "--numa-bind", "--watermark", "0.5", "--worker-cls", "auto")
    lines = capsys.readouterr().err.splitlines()
    assert [line.removeprefix("test: warning: ").partition(" is accepted, no effect")[0] for line in lines] == [
        "optimization_level=3", "compilation_config.mode", "numa_bind", "watermark",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "eager"),
    [
        ("-O0", True),
        ("-O2", False),
        ("--optimization-level O0", True),
        ("-cc 0", True),
        ("-cc.cudagraph_mode NONE", True),
        ('--compilation-config {"mode":"NONE","cudagraph_capture_sizes":[1,2]}', True),
        ("-cc.mode 3", False),
        ("--compilation-config.use_cudagraph false", True),
    ],
)
def test_levels_of_optimization_are_eager_or_not(parse, words, eager):
    assert parse("m", *words.split())[0].enforce_eager is eager


def test_retired_flags_say_what_replaces_them(parse, capsys):
    engine, _ = parse("--model", "m", "--disable-mm-preprocessor-cache", "--task", "embed")
    assert (engine.model, engine.mm_processor_cache_gb, engine.runner) == ("m", 0, "pooling")
    assert len(capsys.readouterr().err.splitlines()) == 3
    assert parse("--device-ids", "1")[0].device == "cuda:1"


def test_the_model_is_named_once(parse):
    assert status_of(parse, "a", "--model", "b") == 2


def test_no_argument_is_in_two_tables():
    own = {field.name for config in CONFIGS for field in fields(config)}
    assert not own & set(REFUSED)
    assert not own & set(NO_EFFECT)
    assert not set(REFUSED) & (set(NO_EFFECT) | set(MOVED))


# ---- help ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "present", "absent"),
    [
        ("--help", "Groups: ModelConfig", "--block-size"),
        ("--help=all", "--numa-bind", "\0"),
        ("--help=cacheconfig", "--block-size", "--port"),
        ("--help=max_model_len", "--max-model-len", "--port"),
        ("--help=seq", "--max-num-seqs", "--port"),
    ],
)
def test_help_by_topic(parser, capsys, word, present, absent):
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["model", word])
    out = capsys.readouterr().out
    assert exit_.value.code == 0
    assert present in out
    assert absent not in out


def test_help_on_nothing_known_is_refused(parser):
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--help=xyzzy"])
    assert exit_.value.code == 2


# ---- keys, templates, environment ---------------------------------------------------------------------------------


def configured(parser, words, **environment):
    return serve.configure(settings(parser, parser.parse_args(words)), Environment(**environment))[1]


def test_keys_come_from_flags_a_file_or_else_the_environment(parser, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# team a\nfirst\n\n second \n")
    assert configured(parser, ["--api-key-file", str(file)], api_key="env").api_keys == ("first", "second")
    assert configured(parser, ["--api-key", "k", "--api-key-file", str(file)]).api_keys == ("k", "first", "second")
    assert configured(parser, [], api_key="env").api_keys == ("env",)
    file.write_text("#")
    with pytest.raises(ConfigError, match="0 keys"):
        configured(parser, ["--api-key-file", str(file)])


def test_a_template_is_a_file_or_text(parser, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert configured(parser, ["--chat-template", str(tmp_path / "t.jinja")]).chat_template == "{{ messages }}"
    assert configured(parser, ["--chat-template", "{{ x }}"]).chat_template == "{{ x }}"


def test_the_environment_is_below_the_flags(parser):
    variables = {"http_max_request_body_size": 5, "server_dev_mode": True, "logging_level": "DEBUG"}
    server = configured(parser, [], **variables)
    assert (server.max_body_bytes, server.dev_mode, server.log_level) == (5, True, "debug")
    words = ["--max-body-bytes", "7", "--no-dev-mode", "--log-level", "error"]
    server = configured(parser, words, **variables)
    assert (server.max_body_bytes, server.dev_mode, server.log_level) == (7, False, "error")
    with pytest.raises(ConfigError, match="LOGGING_LEVEL"):
        configured(parser, [], logging_level="loud")
