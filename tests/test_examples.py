"""The examples as a reader runs them, against a server of the packaged model, about the demo's files."""

from __future__ import annotations

import ast
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


@pytest.fixture(scope="module")
def pooling_url(packaged_model):
    config = EngineConfig(model=str(packaged_model), runner="pooling")
    with EngineClient(config) as client, serve(client) as live:
        yield f"{live.url}/v1"


def run(name: str, *arguments: str, url: str = "", stdin: str = "", folder: Path | None = None) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = os.environ | {"OPENAI_BASE_URL": url}
    done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, cwd=folder)
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


def test_tools(url):
    called, *answer = run("tools.py", url=url).splitlines()
    name, arguments = called.split(" ", 1)
    assert name == "weather"
    assert 1 <= json.loads(arguments)["days"] <= 9
    assert answer


def test_structured_output(questions, url):
    found = ast.literal_eval(run("structured.py", str(ASSETS / questions["image"]["file"]), url=url))
    assert set(found) == {"objects", "circle"}


def test_embeddings(pooling_url):
    closest, *_ = run("embeddings.py", "Good morning", "A purple heart", "Good morning", url=pooling_url).splitlines()
    assert closest == "1.000 Good morning"


def test_batch(questions, tmp_path):
    question = questions["image"]
    picture = str(ASSETS / question["file"])
    answers = run("batch.py", picture, picture, folder=tmp_path).splitlines()
    assert [answer.split(" ", 1)[0] for answer in answers] == [f"{n}-{question['file']}" for n in (0, 1)]
    assert len({answer.split(" ", 1)[1] for answer in answers}) == 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_examples_are_short(path):
    assert path.read_text().count("\n") < 40
