"""`sensorium serve` as a process: the start commands of the documents it must take over, its log, its keys."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sensorium.cli import serve
from sensorium.cli.logs import throughput_line
from sensorium.cli.options import settings
from sensorium.cli.parser import Parser
from sensorium.engine.protocol import EngineStats
from sensorium.envs import Environment

SEEDS = Path(__file__).parents[3] / "shared" / "seeds"
# As printed in the documents, but for the program's name; <dir> is some folder.
START_LINES = [
    "MODEL --dtype auto --max-model-len 2048 --api-key token-abc123 --gpu_memory_utilization 0.9 --trust-remote-code "
    "--max-num-batched-tokens 2048",
    "MODEL --dtype auto --max-model-len 4096 --api-key token-abc123 --gpu_memory_utilization 0.9 --trust-remote-code "
    "--limit-mm-per-prompt '{\"video\": 3}'",
    "MODEL --dtype auto --max-model-len 4096 --api-key token-abc123 --gpu_memory_utilization 0.9 --trust-remote-code "
    '--limit-mm-per-prompt \'{"image":5, "video": 2}\'',
    "MODEL --runner generate --trust-remote-code --max-model-len 4096 --limit-mm-per-prompt.image 2",
    "MODEL --runner generate --max-model-len 8192",
    'MODEL --media-io-kwargs \'{"video": {"frame_recovery": true}}\'',
    'MODEL --media-io-kwargs \'{"image": {"rgba_background_color": [0, 0, 0]}}\'',
    "MODEL",
]


@contextmanager
def running(*words: str, env: dict[str, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server process: its address and its log up to the line that says it is ready."""
    command = [sys.executable, "-m", "sensorium", "serve", *words, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as server:
        try:
            log = []
            for line in server.stderr:
                log.append(line)
                if "Application startup complete." in line:
                    break
            url = next(match[0] for line in log if (match := re.search(r"http://[\d.]+:\d+", line)))
            yield url, log
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()
        assert server.wait() == 0


def get(url: str, key: str = "") -> dict:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as reply:
        return json.load(reply)


def parse(words: list[str]) -> tuple:
    parser = Parser(prog="serve", usage="serve")
    serve.add_arguments(parser)
    return serve.configure(settings(parser, parser.parse_args(words)), Environment())


@pytest.mark.parametrize("line", START_LINES)
def test_start_commands_are_understood_without_a_warning(line, capsys):
    parse(shlex.split(line))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the documents are not there")
@pytest.mark.parametrize("name", ["000", "003"])
def test_every_start_command_of_the_documents_is_understood(name, tmp_path, capsys):
    text = next(SEEDS.glob(f"{name}*")).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip().startswith("vllm serve ")]
    assert len(lines) >= 3
    for line in lines:
        line = re.sub(r"<[^>]*路径>", "MODEL", line.strip()).replace("<path>", str(tmp_path))
        parse(shlex.split(line)[2:])
    assert capsys.readouterr().err == ""


def test_the_packaged_model_speaks_and_others_where_asked():
    assert parse([])[0].init_tts
    assert parse(["sensorium-tiny"])[0].init_tts
    assert not parse(["--no-init-tts"])[0].init_tts
    assert not parse(["--runner", "pooling"])[0].init_tts
    assert not parse(["owner/name"])[0].init_tts


def test_the_first_start_command_serves(any_model):
    words = shlex.split(START_LINES[0])[1:]
    with running(str(any_model), *words) as (url, log):
        card = get(f"{url}/v1/models", "token-abc123")["data"][0]
        assert card["id"] == str(any_model)
        assert card["max_model_len"] == 2048
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"{url}/v1/models", "wrong")
    wanted = [
        "listening on",
        r"Model loading took \d+\.\d\d GiB and \d+\.\d\d seconds",
        r"Available KV cache memory: \d+\.\d\d GiB",
        r"GPU KV cache size: [\d,]+ tokens",
        r"Maximum concurrency for 2,048 tokens per request: \d+\.\d\dx",
        r"Chunked prefill is enabled with max_num_batched_tokens=2048",
        r"Encoder cache: [\d,]+ tokens",
        r"init engine took \d+\.\d\d seconds \(imports .*weights .*\)",
        "Served model names: ",
        "Route: /v1/chat/completions, Methods: POST",
        r"ready after \d",
        "Application startup complete.",
    ]
    text = "".join(log)
    assert [pattern for pattern in wanted if not re.search(pattern, text)] == []


@pytest.mark.slow
@pytest.mark.parametrize("line", START_LINES[1:])
def test_the_other_start_commands_serve(any_model, line):
    words = shlex.split(line)[1:]
    # The documents mean other models, with longer contexts than this one.
    with running(str(any_model), *words, env=os.environ | {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}) as (url, _):
        card = get(f"{url}/v1/models", "token-abc123")["data"][0]
        if "--max-model-len" in words:
            assert card["max_model_len"] == int(words[words.index("--max-model-len") + 1])


def test_an_open_address_without_a_key_gets_one_and_prints_a_ready_address(any_model):
    with running(str(any_model), "--host", "0.0.0.0", "--max-model-len", "512") as (url, log):
        key = next(match[1] for line in log if (match := re.search(r"/#key=(\S+)", line)))
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert get(f"{url}/v1/models", key)["data"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            get(f"{url}/v1/models")


def test_the_throughput_line_is_the_one_that_scripts_look_for():
    before = EngineStats(prompt_tokens=100, generation_tokens=10)
    now = EngineStats(
        prompt_tokens=300,
        generation_tokens=60,
        prefix_query_tokens=400,
        prefix_hit_tokens=100,
        running=2,
        waiting=1,
        kv_blocks_used=1,
        kv_blocks_total=8,
    )
    assert throughput_line(before, now, 10.0, 1, 4) == (
        "Avg prompt throughput: 20.0 tokens/s, Avg generation throughput: 5.0 tokens/s, Running: 2 reqs, "
        "Waiting: 1 reqs, GPU KV cache usage: 12.5%, Prefix cache hit rate: 25.0%, "
        "MM cache hit rate: 25.0%"
    )
