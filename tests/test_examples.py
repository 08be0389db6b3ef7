"""The examples as a reader runs them, against a server of the packaged model, about the demo's files."""

from __future__ import annotations

import ast
import io
import json
import os
import runpy
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


def run(name: str, *arguments: str, url: str = "", folder: Path | None = None) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = os.environ | {"OPENAI_BASE_URL": url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs an example as Python does, without starting one for it; what it prints."""

    def run(name: str, *arguments: str, url: str = "", stdin: str = "") -> str:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        client = runpy.run_path(str(EXAMPLES / name), run_name="__main__").get("client")
        if client is not None:
            client.close()
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_example_answers_about_a_file(kind, questions, url, here):
    question = questions[kind]
    answer = here(f"{kind}.py", str(ASSETS / question["file"]), question["question"], url=url)
    assert answer.strip() == question["expected"]


def test_an_example_is_a_program(questions, url):
    question = questions["image"]
    answer = run("image.py", str(ASSETS / question["file"]), question["question"], url=url)
    assert answer.strip() == question["expected"]


def test_chat(url, here):
    assert here("chat.py", url=url, stdin="Hello\nWho are you?\n").count("\n") == 2


def test_offline(questions, here):
    assert "How many" in here("offline.py", str(ASSETS / questions["image"]["file"]))


def test_tools(url, here):
    called, *answer = here("tools.py", url=url).splitlines()
    name, arguments = called.split(" ", 1)
    assert name == "weather"
    assert 1 <= json.loads(arguments)["days"] <= 9
    assert answer


def test_structured_output(questions, url, here):
    found = ast.literal_eval(here("structured.py", str(ASSETS / questions["image"]["file"]), url=url))
    assert set(found) == {"objects", "circle"}


def test_embeddings(pooling_url, here):
    closest, *_ = here("embeddings.py", "Good morning", "A purple heart", "Good morning", url=pooling_url).splitlines()
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
