"""pipecat's OpenAI services in pipelines: realtime, functions, a cascade, transcription, a live session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clients.conftest import MODEL
from clients.wire import Wire
from transcripts import keep

SAID = "The small bird is near the window."
Program = Callable[..., Any]
pytestmark = pytest.mark.slow


@pytest.fixture
def flow(program: Program, wire: Wire, sounds: Path) -> Callable[[str], Any]:
    def run(name: str) -> Any:
        told = program("pipecat_flows.py", f"127.0.0.1:{wire.port}", MODEL, name, sounds)
        assert told.get("errors", []) == []
        assert wire.told("error") == []
        return told

    return run


def test_speech_is_written_down_and_answered(flow: Callable[[str], Any], wire: Wire):
    told = flow("realtime")
    assert told["written"] == [SAID]
    assert told["spoken"].endswith(SAID)
    assert told["loud"]
    assert told["audio"] / 48_000 > 1.0
    assert len(wire.told("response.done")) == len(wire.told("response.created")) == 2
    assert len(wire.told("conversation.item.truncated")) == 1
    assert [message["role"] for message in told["messages"]][:1] == ["user"]


def test_a_function_is_called_and_answered(flow: Callable[[str], Any], wire: Wire):
    told = flow("tool")
    [result] = told["results"]
    assert result["weather"] == "Rain"
    assert 1 <= result["days"] <= 9
    assert told["text"]
    assert [e["response"]["output"][0]["type"] for e in wire.told("response.done")] == ["function_call", "message"]
    keep(wire.said, "realtime-functions")


def test_the_services_of_a_cascade(program: Program, url: str, sounds: Path):
    told = program("pipecat_flows.py", url.removeprefix("http://"), MODEL, "cascade", sounds)
    assert told["errors"] == []
    assert told["text"]
    assert told["loud"]
    assert told["audio"] / 48_000 > 0.3


def test_recordings_by_file_and_by_socket(program: Program, url: str, sounds: Path):
    told = program("pipecat_flows.py", url.removeprefix("http://"), MODEL, "transcribe", sounds)
    for way in ("file", "socket"):
        assert told[way]["errors"] == []
        assert told[way]["written"] == [SAID]


def test_a_live_session(program: Program, live_wire: Wire, sounds: Path):
    told = program("pipecat_flows.py", f"127.0.0.1:{live_wire.port}", "speaks", "live", sounds)
    assert told["errors"] == []
    assert live_wire.told("error") == []
    assert told["spoken"]
    assert told["audio"] > 0
    assert live_wire.order()[0] == "session.started"
    assert live_wire.told()[-1]["type"] == "session.closed"
