"""The examples as a reader runs them, against a server of the packaged model, about the demo's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from server.live import serve

from sensorium.config import EngineConfig
from sensorium.demo import ASSETS, KINDS
from sensorium.engine.client import EngineClient

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def questions(packaged_model):
    return {KINDS[Path(q["file"]).suffix]: q for q in json.loads((ASSETS / "demo.json").read_text("utf-8"))}


@pytest.fixture(scope="module")
def url(packaged_model):
    with EngineClient(EngineConfig(model=str(packaged_model))) as client, serve(client) as live:
        yield f"{live.url}/v1"


def run(name: str, *arguments: str, url: str = "", stdin: str = "") -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = os.environ | {"OPENAI_BASE_URL": url}
    done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_example_answers_about_a_file(kind, questions, url):
    question = questions[kind]
    assert (
        run(f"{kind}.py", str(ASSETS / question["file"]), question["question"], url=url).strip() == question["expected"]
    )


def test_chat(url):
    assert run("chat.py", url=url, stdin="Hello\nWho are you?\n").count("\n") == 2


def test_offline(questions):
    assert "How many" in run("offline.py", str(ASSETS / questions["image"]["file"]))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path):
    assert path.read_text().count("\n") < 40
