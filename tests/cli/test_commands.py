"""The commands as a user meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from server.live import serve

from sensorium import __version__
from sensorium.bench import step
from sensorium.cli import COMMANDS, main
from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"sensorium {__version__}\n"


def test_no_command_lists_the_commands(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(summary in out for _, summary in COMMANDS.values())


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["srve"])
    assert exit_.value.code == 2
    assert "'srve'" in capsys.readouterr().err


def in_one_process(lines: list[list[str]]) -> subprocess.CompletedProcess[str]:
    """Calls of the command, one after the other, as starting a process takes longest: behind what each prints comes a
    line "> [its first word] [its exit status] [whether torch is there]"."""
    script = """
import json, sys
from sensorium.cli import main
for line in json.loads(sys.argv[1]):
    try:
        status = main(line)
    except SystemExit as exit:
        status = exit.code
    print(">", line[0], status, "torch" in sys.modules, flush=True)
"""
    command = [sys.executable, "-c", script, json.dumps(lines)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_help_needs_no_torch():
    done = in_one_process([[command, "--help"] for command in COMMANDS])
    assert [line for line in done.stdout.splitlines() if line.startswith(">")] == [
        f"> {command} 0 False" for command in COMMANDS
    ]
    for command in COMMANDS:
        assert f"sensorium {command} {'TEXT' if command == 'speak' else '[MODEL]'}" in done.stdout


def test_a_missing_model_is_one_line_with_a_next_step(tmp_path):
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}')
    more = {"serve": ["--port", "0"], "run-batch": ["-i", str(requests), "-o", str(tmp_path / "answers.jsonl")]}
    lines = [[command, "./no-such-model", *more.get(command, ())] for command in COMMANDS if command != "speak"]
    lines.append(["speak", "Hello.", "--model", "./no-such-model", "-o", str(tmp_path / "hello.wav")])
    done = in_one_process(lines)
    ends = [line.split()[1:3] for line in done.stdout.splitlines() if line.startswith(">")]
    assert ends == [[line[0], "1"] for line in lines]
    assert "Traceback" not in done.stdout
    assert done.stdout.count("no model folder at './no-such-model'; give a folder") == len(lines)


def test_doctor_reports_as_text_and_json(any_model, capsys):
    assert main(["doctor", str(any_model)]) == 0
    assert "KV cache" in capsys.readouterr().out
    assert main(["doctor", str(any_model), "--json"]) == 0
    assert {"torch", "codecs", "device cpu"} <= {finding["about"] for finding in json.loads(capsys.readouterr().out)}


def test_collect_env_is_doctor(any_model, capsys):
    assert main(["collect-env", str(any_model)]) == 0
    assert "KV cache" in capsys.readouterr().out


def test_complete_continues_a_prompt(any_model, capsys):
    words = ["--prompt", "once upon", "--max-tokens", "4", "--temperature", "0", "--max-model-len", "256"]
    assert main(["complete", str(any_model), *words]) == 0
    first = capsys.readouterr().out
    with EngineClient(EngineConfig(model=str(any_model), max_model_len=256)) as client, serve(client) as live:
        assert main(["complete", "--url", f"{live.url}/v1", *words]) == 0
    assert capsys.readouterr().out == first


WRONG = [
    (["serve", "--gpu-memory-utilization", "2"], 2),
    (["serve", "--allowed-local-media-path", "/no/such/folder"], 2),
    (["serve", "--enable-auto-tool-choice"], 1),
    (["chat", "--max-num-seqs", "0"], 2),
    (["doctor", "--tensor-parallel-size", "1"], 2),
]


def test_a_wrong_setting_ends_at_once_without_a_traceback():
    done = in_one_process([words for words, _ in WRONG])
    *parts, rest = re.split(r"^> (?:\w+) (\d) False\n", done.stdout, flags=re.MULTILINE)
    said, statuses = parts[::2], parts[1::2]
    assert (list(map(int, statuses)), rest) == ([status for _, status in WRONG], "")
    assert "Traceback" not in done.stdout
    assert all(1 <= text.count("\n") <= 2 for text in said)


def test_the_module_ends_with_the_commands_status():
    words, status = WRONG[0]
    done = subprocess.run([sys.executable, "-m", "sensorium", *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("\n") <= 2


def test_bench_measures_a_model(any_model, capsys):
    words = ["--batch", "1", "2", "--prompt-len", "8", "--num-tokens", "4", "--repeat", "1", "--json"]
    assert main(["bench", str(any_model), "--max-model-len", "512", *words]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["batch"] for row in rows] == [1, 2]
    assert all(row["new_tokens_per_s"] > 0 and row["itl_ms"] > 0 for row in rows)


def test_bench_measures_the_engines_step(monkeypatch, capsys):
    monkeypatch.setattr(step, "NUM_STEPS", 12)
    monkeypatch.setattr(step, "WARM_UP", 2)
    assert main(["bench", "--engine-step"]) == 0
    assert "engine_ms" in capsys.readouterr().out


@pytest.mark.slow
def test_bench_compares_with_transformers_token_by_token(any_model, capsys):
    pytest.importorskip("transformers")
    words = ["--batch", "1", "3", "--prompt-len", "8", "--num-tokens", "6", "--repeat", "1", "--max-model-len", "512"]
    assert main(["bench", str(any_model), "--transformers", "--json", *words]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["batch"], row["lengths"]) for row in rows] == [(1, "equal"), (3, "equal"), (3, "mixed")]
    assert [row["equal_tokens"] for row in rows] == [1, 1, 1]
    assert all(row["ratio"] > 0 for row in rows)


def test_starting_imports_no_compiler():
    """torch._dynamo costs more than all the rest of a start; whatever needs it must ask for it later."""
    modules = "sensorium.engine.client, sensorium.models.minicpmo, sensorium.models.minicpm_processor"
    script = f"import sys, {modules}\nsys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
