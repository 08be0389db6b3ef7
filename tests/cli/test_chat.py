"""The terminal conversation, with a stand-in for the keyboard."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image
from server.live import serve

from sensorium.cli import main
from sensorium.cli.chat import Chat
from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.errors import RequestError


class Echo:
    """Answers with the parts it was sent."""

    name = "echo"

    def __init__(self) -> None:
        self.seen = []

    def answer(self, messages):
        self.seen.append([dict(message) for message in messages])
        content = messages[-1]["content"]
        parts = [content] if isinstance(content, str) else [part.get("text", part["type"]) for part in content]
        if "fail" in parts:
            raise RequestError("no")
        for part in parts:
            yield f"[{part}]"


@pytest.fixture
def talk(monkeypatch, capsys):
    def run(*lines: str, system: str = "") -> tuple[Echo, str]:
        backend = Echo()
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
        Chat(backend, system).run()
        return backend, capsys.readouterr().out

    return run


def test_the_conversation_grows_until_it_is_reset(talk):
    backend, _ = talk("one", "two", "/reset", "three", "/quit", "four", system="be kind")
    assert [len(messages) for messages in backend.seen] == [2, 4, 2]
    assert backend.seen[1][1:3] == [{"role": "user", "content": "one"}, {"role": "assistant", "content": "[one]"}]


def test_a_backslash_continues_the_message(talk):
    backend, _ = talk("first\\", "second")
    assert backend.seen[0][0]["content"] == "first\nsecond"


def test_media_go_with_the_next_message_only(talk, tmp_path):
    (tmp_path / "a b.png").write_bytes(b"picture")
    (tmp_path / "b.wav").write_bytes(b"sound")
    backend, out = talk(f"/image '{tmp_path}/a b.png'", f"/audio {tmp_path}/b.wav", "what?", "and?")
    assert "[image_url][audio_url][what?]" in out
    assert backend.seen[0][0]["content"][0]["image_url"]["url"] == "data:image/png;base64,cGljdHVyZQ=="
    assert backend.seen[1][-1]["content"] == "and?"


def test_a_message_that_fails_is_forgotten(talk):
    backend, out = talk("fail", "again")
    assert "That did not work: no" in out
    assert backend.seen[1] == [{"role": "user", "content": "again"}]


def test_wrong_commands_and_files_are_explained(talk):
    backend, out = talk("/imag x", "/image no-such-file", "/image", "")
    assert "There is no /imag" in out
    assert "Cannot read no-such-file: No such file or directory" in out
    assert backend.seen == []


def test_both_backends_answer_alike(any_model, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "picture.png"
    Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).save(picture)
    lines = f"hello\n/image {picture}\nwhat is this?\n"
    settings = ["--max-tokens", "6", "--max-model-len", "1k", "--temperature", "0"]
    outputs = []
    with EngineClient(EngineConfig(model=str(any_model), max_model_len=1000)) as client, serve(client) as live:
        for arguments in ([str(any_model), *settings], ["--url", f"{live.url}/v1", *settings]):
            monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
            assert main(["chat", *arguments]) == 0
            outputs.append(capsys.readouterr().out.split("\n", 1)[1])
    assert outputs[0] == outputs[1]
    assert "did not work" not in outputs[0]


def test_a_server_that_is_not_there_is_one_line(capsys):
    assert main(["chat", "--url", "http://127.0.0.1:1/v1"]) == 1
    assert "is `sensorium serve` running there?" in capsys.readouterr().err
