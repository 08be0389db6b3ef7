"""LiveKit's openai plugin without a room: RealtimeModel, GPTLiveModel, LLM, TTS and STT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clients.conftest import MODEL
from clients.wire import Wire

SAID = "The small bird is near the window."
Program = Callable[..., Any]
pytestmark = pytest.mark.slow


def test_a_realtime_session(program: Program, wire: Wire, sounds: Path):
    told = program("livekit_flows.py", f"127.0.0.1:{wire.port}", MODEL, "realtime", sounds)
    assert told["errors"] == []
    assert wire.told("error") == []
    assert told["events"] == ["input_speech_started", "input_speech_stopped"]
    assert told["written"] == told["answer"]["text"] == SAID
    assert told["answer"]["loud"]
    assert 1.0 < told["answer"]["audio"] / 24_000 < 5.0
    [call] = told["call"]["calls"]
    assert call["name"] == "weather"
    assert json.loads(call["arguments"])["day"] in ("today", "tomorrow")
    assert told["about"]["text"]
    assert len(wire.told("conversation.item.truncated")) == 1
    assert told["items"].count("function_call_output") == 1
    assert len(wire.told("response.done")) == len(wire.told("response.created")) == 4


def test_the_classes_of_a_cascade(program: Program, url: str, sounds: Path):
    told = program("livekit_flows.py", url.removeprefix("http://"), MODEL, "services", sounds)
    [[name, arguments]] = told["calls"]
    assert name == "weather"
    assert json.loads(arguments)["day"] in ("today", "tomorrow")
    assert told["text"]
    assert 1.0 < told["seconds"] < 5.0
    assert told["written"] == SAID


def test_a_live_session(program: Program, live_wire: Wire, sounds: Path):
    told = program("livekit_flows.py", f"127.0.0.1:{live_wire.port}", "speaks", "live", sounds)
    assert told["errors"] == []
    assert live_wire.told("error") == []
    assert told["text"]
    assert told["loud"]
    assert live_wire.told()[-1]["type"] == "session.closed"
