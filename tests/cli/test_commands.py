"""The commands as a user meets them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from sensorium import __version__
from sensorium.bench import step
from sensorium.cli import COMMANDS, main


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


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_torch(command):
    script = f"import sys, sensorium.cli\ntry: sensorium.cli.main(['{command}', '--help'])\nexcept SystemExit: pass\n"
    script += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert f"sensorium {command} [MODEL]" in done.stdout


@pytest.mark.parametrize("command", ["serve", "chat", "bench", "doctor"])
def test_a_missing_model_is_one_line_with_a_next_step(command):
    arguments = [command, "./no-such-model"] + (["--port", "0"] if command == "serve" else [])
    done = subprocess.run([sys.executable, "-m", "sensorium", *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "no model folder at './no-such-model'; give a folder" in (done.stderr + done.stdout)


def test_serve_listens_loads_and_stops(any_model):
    command = [sys.executable, "-m", "sensorium", "serve", str(any_model), "--port", "0", "--max_model_len", "1k"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            log = []
            for line in server.stderr:
                log.append(line)
                if "ready after" in line:
                    break
            url = re.search(r"http://\S+", log[-1])[0]
            with urllib.request.urlopen(f"{url}/v1/models") as reply:
                assert json.load(reply)["data"][0]["max_model_len"] == 1000
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait() == 0
    assert [phase for phase in ("listening on", "imports: ", "processor: ", "weights: ", "ready after")
            if not any(phase in line for line in log)] == []  # fmt: skip


def test_serve_names_the_flags_when_it_cannot_listen(capsys):
    assert main(["serve", "--host", "0.0.0.0"]) == 1
    error = capsys.readouterr().err
    assert "--api-key" in error
    assert error.count("\n") == 1


def test_doctor_reports_as_text_and_json(any_model, capsys):
    assert main(["doctor", str(any_model)]) == 0
    assert "KV cache" in capsys.readouterr().out
    assert main(["doctor", str(any_model), "--json"]) == 0
    assert {"torch", "codecs", "device cpu"} <= {finding["about"] for finding in json.loads(capsys.readouterr().out)}


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
