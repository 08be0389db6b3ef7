"""Batch files: every kind of line, the order of answers, going on after an interruption, files at addresses."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server import samples
from server.live import user

from sensorium.cli import main
from sensorium.config import ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.server.app import build_app
from sensorium.server.batch import Batch, BatchError, finished_ids, read_lines

CHAT: dict[str, Any] = {"messages": user("Hello"), "max_tokens": 3, "temperature": 0, "ignore_eos": True}
SPEECH = Path(__file__).resolve().parents[2] / "sensorium/packaged/demo/speech.wav"


def line(custom_id: str, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body or CHAT}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in lines))
    return path


def run(engine: EngineClient, source: Path, output: Path, max_inflight: int = 4) -> list[dict[str, Any]]:
    """As the command does, with an engine that is there already."""
    batch = Batch(build_app(engine, ServerConfig(served_model_name="tiny")), source, max_inflight)
    done = finished_ids(output)
    advanced: list[int] = []
    left = [item for item in read_lines(source) if item.custom_id not in done]
    asyncio.run(batch.run(left, output, lambda: advanced.append(1)))
    assert len(advanced) == len(left)
    return [json.loads(text) for text in output.read_text().splitlines()]


def test_all_kinds_of_lines_are_answered_in_order(engine: EngineClient, tmp_path: Path):
    lines = [
        line("long", **{**CHAT, "max_tokens": 60}),
        line("short"),
        line("text", "/v1/completions", prompt="Hello", max_tokens=2),
        line("items", "/v1/responses", input="Hello", max_output_tokens=2),
        line("wrong", **{**CHAT, "temperature": 9}),
        line("absent", "/v1/embeddings", input="Hello"),
        line("heard", "/v1/audio/transcriptions", file_url=samples.data_url("audio/wav", SPEECH.read_bytes())),
        line("last"),
    ]
    answers = run(engine, write(tmp_path / "in.jsonl", *lines, ""), tmp_path / "out.jsonl")
    assert [answer["custom_id"] for answer in answers] == [item["custom_id"] for item in lines]
    by_id = {answer["custom_id"]: answer for answer in answers}
    assert len({answer["id"] for answer in answers}) == len(lines)
    for name in ("long", "short", "text", "items", "heard", "last"):
        assert by_id[name]["error"] is None
        assert by_id[name]["response"]["status_code"] == 200
        assert by_id[name]["response"]["request_id"]
    assert by_id["short"]["response"]["body"]["choices"][0]["message"]["content"]
    assert by_id["heard"]["response"]["body"]["text"]
    assert by_id["wrong"]["response"]["status_code"] == 400
    assert by_id["wrong"]["response"]["body"] is None
    assert by_id["wrong"]["error"]["param"] == "temperature"
    assert by_id["absent"]["response"]["status_code"] == 404


def test_a_batch_goes_on_where_it_stopped(engine: EngineClient, tmp_path: Path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, *(line(f"line-{number}") for number in range(6)))
    whole = run(engine, source, output)
    text = output.read_bytes().splitlines(keepends=True)
    output.write_bytes(b"".join(text[:3]) + text[3][:20])  # as a killed run leaves it
    again = run(engine, source, output)
    assert [answer["custom_id"] for answer in again] == [answer["custom_id"] for answer in whole]
    assert [answer["id"] for answer in again[:3]] == [answer["id"] for answer in whole[:3]]
    assert [answer["id"] for answer in again[3:]] != [answer["id"] for answer in whole[3:]]


WRONG = {
    "no JSON": "{",
    "no object": "[]",
    "no id": {"method": "POST", "url": "/v1/completions", "body": {}},
    "another method": {**line("b"), "method": "GET"},
    "another url": line("b", "/v1/models"),
    "no body": {**line("b"), "body": None},
    "the same id": line("a"),
    "an unknown field": {**line("b"), "model": "tiny"},
    "a stream": line("b", messages=[], stream=True),
}


@pytest.mark.parametrize("name", WRONG)
def test_h215_a_wrong_line_stops_the_batch_before_it_begins(tmp_path: Path, name: str):
    source = write(tmp_path / "in.jsonl", line("a"), "", WRONG[name])
    with pytest.raises(BatchError, match="Invalid request on line 3: "):
        read_lines(source)


def test_an_output_of_something_else_is_left_alone(tmp_path: Path):
    precious = write(tmp_path / "out.jsonl", '{"my": "data"}')
    with pytest.raises(BatchError, match="no output of a batch"):
        finished_ids(precious)
    assert precious.read_text() == '{"my": "data"}\n'


class Files(http.server.BaseHTTPRequestHandler):
    """Gives one file, and takes one at the second try."""

    given = b""
    taken: list[bytes] = []  # noqa: RUF012 - one server per test

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(self.given)))
        self.end_headers()
        self.wfile.write(self.given)

    def do_PUT(self) -> None:
        length = self.headers.get("content-length")
        data = self.rfile.read(int(length)) if length else b""
        self.taken.append(data)
        self.send_response(500 if len(self.taken) == 1 else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def files() -> Iterator[str]:
    Files.taken = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_command_reads_and_writes_files_at_addresses(
    any_model: Path, files: str, capsys: pytest.CaptureFixture[str]
):
    Files.given = b"".join(json.dumps(line(name)).encode() + b"\n" for name in ("a", "b"))
    arguments = ["run-batch", "--model", str(any_model), "-i", f"{files}/in.jsonl", "-o", f"{files}/out.jsonl"]
    assert main([*arguments, "--max-model-len", "256", "--kv-cache-bytes", "16M"]) == 0
    assert len(Files.taken) == 2
    answers = [json.loads(text) for text in Files.taken[1].splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["a", "b"]
    assert all(answer["error"] is None for answer in answers)
    assert "2 requests answered, 0 of them with an error" in capsys.readouterr().err


def test_the_command_needs_its_files(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["run-batch"])
    assert "-i requests.jsonl -o answers.jsonl" in capsys.readouterr().err
    assert main(["run-batch", "-i", "nowhere.jsonl", "-o", "out.jsonl"]) == 1
    assert "there is no file nowhere.jsonl" in capsys.readouterr().err
