"""openai-agents: a function tool over chat completions and responses; speech, interruption and a tool over realtime."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("door", ["chat", "responses"])
def test_an_agent_calls_its_tool_and_answers(program: Program, url: str, door: str):
    told = program("agents_text.py", f"{url}/v1", MODEL, door)
    assert len(told["called"]) == 2, "once whole, once streamed"
    assert told["whole"]
    assert told["deltas"] == told["streamed"] != ""
    assert told["items"] == ["tool_called", "tool_output", "message_output_created"]
    assert told["tokens"] > 0


def test_speech_is_answered_and_interrupted(program: Program, wire: Wire, sounds: Path):
    told = program("agents_realtime.py", wire.url, MODEL, "speech", sounds)
    assert told["errors"] == []
    assert wire.told("error") == []
    assert told["audio"] > 24_000
    assert told["events"].count("audio_interrupted") == 1
    user = [item for item in told["history"] if item.get("role") == "user"]
    assert [item["content"][0]["transcript"] for item in user] == [SAID, SAID]
    assert told["history"][-1]["content"][0]["transcript"] == SAID
    [cut] = wire.told("conversation.item.truncated")
    assert cut["item_id"] == wire.told("response.created", "response.output_item.added")[1]["item"]["id"]
    ends = wire.told("response.done")
    assert len(ends) == len(wire.told("response.created")) == 2
    assert ends[-1]["response"]["status"] == "completed"


@pytest.mark.usefixtures("talkative")
def test_an_answer_that_would_go_on_is_cut(program: Program, wire: Wire, sounds: Path):
    told = program("agents_realtime.py", wire.url, MODEL, "cut", sounds)
    assert told["errors"] == []
    assert wire.told("error") == []
    [done] = wire.told("response.done")
    assert done["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    keep(wire.said, "realtime-interruption", last="conversation.item.truncated")


def test_a_tool_is_called_and_answered(program: Program, wire: Wire, sounds: Path):
    told = program("agents_realtime.py", wire.url, MODEL, "tool", sounds)
    assert told["errors"] == []
    assert wire.told("error") == []
    assert len(told["called"]) == 1
    assert told["audio"] > 0
    first, second = wire.told("response.done")
    [call] = first["response"]["output"]
    assert json.loads(call["arguments"]) == {"days": told["called"][0]}
    [output] = [
        e["item"] for e in wire.asked("conversation.item.create") if e["item"]["type"] == "function_call_output"
    ]
    assert (output["call_id"], output["output"]) == (call["call_id"], "Rain")
    assert second["response"]["output"][0]["type"] == "message"
