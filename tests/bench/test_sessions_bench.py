"""The script behind the curve of sessions, with a tiny model on a CPU."""

import importlib
import json
import sys

import pytest


@pytest.mark.slow
def test_sessions_against_the_clock(packaged_model, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(packaged_model.parents[2] / "benchmarks"))
    sessions = importlib.import_module("sessions")
    pytest.importorskip("matplotlib")
    words = ["--size", "tiny", "--sessions", "1,2", "--seconds", "2", "--threads", "2", "--engine", "thread"]
    files = ["--json", str(tmp_path / "sessions.json"), "--plot", str(tmp_path / "sessions.png")]
    monkeypatch.setattr(sys, "argv", ["sessions.py", *words, *files])
    sessions.main()
    runs = json.loads((tmp_path / "sessions.json").read_text())["runs"]
    assert [(run["sessions"], run["done"], run["problems"]) for run in runs] == [(1, 2, {}), (2, 4, {})]
    for run in runs:
        assert (run["as_scripted"], run["sound_s_per_unit"]) == (1.0, 1.0), "every unit says 4 tokens in a second"
        assert run["check"].pop("sound_error") < 0.01
        assert run["check"].pop("hidden_error") == pytest.approx(0, abs=1e-4)
        assert run["check"] == {"units": 4, "same_text": True, "same_codes": 1}
        assert run["device_share"].keys() >= {"image", "audio", "prefill", "decode", "choose", "speech", "codec"}
        assert set(run["stage_ms"]) == {"media", "queue", "encode and prefill", "decode", "speech"}
    assert (tmp_path / "sessions.png").read_bytes()[:4] == b"\x89PNG"
