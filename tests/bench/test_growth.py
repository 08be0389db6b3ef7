"""The script behind the growth curves, with small sizes."""

import importlib
import json
import sys

import pytest

SIZES = [
    "--batches",
    "1",
    "2",
    "--contexts",
    "40",
    "9999",
    "--pictures",
    "1",
    "2",
    "--picture-size",
    "64",
    "--repeat",
    "1",
]


@pytest.mark.slow
def test_three_curves_and_their_plot(packaged_model, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(packaged_model.parents[2] / "benchmarks"))
    growth = importlib.import_module("growth")
    pytest.importorskip("matplotlib")
    plotted = tmp_path / "growth.png"
    words = [str(packaged_model), *SIZES, "--json", str(tmp_path / "new" / "growth.json"), "--plot", str(plotted)]
    monkeypatch.setattr(sys, "argv", ["growth.py", *words])
    growth.main()
    curves = json.loads((tmp_path / "new" / "growth.json").read_text())["curves"]
    assert [point["batch"] for point in curves["batch"]] == [1, 2]
    assert [point["context"] for point in curves["context"]] == [40]  # the model's context is shorter than 9999
    assert [point["pictures"] for point in curves["pictures"]] == [1, 2]
    assert all(point["floor_ms"] > 0 and point["token_ms"]["median"] > 0 for point in curves["batch"])
    assert plotted.read_bytes()[:4] == b"\x89PNG"
