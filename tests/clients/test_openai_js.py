"""The openai SDK for JavaScript: chat, speech, realtime over ws with TLS, live sessions."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients.conftest import HERE, MODEL, run_program

SAID = "The small bird is near the window."
FOLDER = HERE / "js"
Flow = Callable[[str], Any]
pytestmark = pytest.mark.slow


@pytest.fixture
def flow(node: str, tls_url: str, certificate: Path, sounds: Path) -> Flow:
    """One flow of client.mjs; its OpenAIRealtimeWS opens wss: addresses only."""

    def run(name: str) -> Any:
        command = [node, FOLDER / "client.mjs", name, f"{tls_url}/v1", MODEL, sounds]
        return run_program(command, NODE_EXTRA_CA_CERTS=str(certificate / "cert.pem"))

    return run


def told(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == kind]


def test_chat_whole_and_streamed(flow: Flow):
    answer = flow("chat")
    assert "".join(answer["pieces"]) == answer["whole"] != ""
    assert len(answer["pieces"]) > 1


def test_speech_and_a_recording(flow: Flow):
    answer = flow("speech")
    assert answer["head"] == "RIFF"
    assert 1.0 < (answer["bytes"] - 44) / 48_000 < 5.0
    assert answer["text"] == SAID


def test_a_text_is_answered(flow: Flow):
    events = flow("text")["events"]
    [done] = told(events, "response.done")
    [part] = done["response"]["output"][0]["content"]
    assert part["type"] == "output_text"
    assert part["text"] == "".join(event["delta"] for event in told(events, "response.output_text.delta")) != ""
    assert not told(events, "error")


def test_speech_is_answered_with_speech_and_cut(flow: Flow):
    events = flow("audio")["events"]
    [done] = told(events, "response.done")
    assert done["response"]["status"] == "completed"
    [part] = done["response"]["output"][0]["content"]
    assert part == {"type": "output_audio", "transcript": SAID}
    pcm = b"".join(base64.b64decode(event["delta"]) for event in told(events, "response.output_audio.delta"))
    assert np.frombuffer(pcm, "<i2").any()
    assert 1.0 < len(pcm) / 48_000 < 5.0
    [cut] = told(events, "conversation.item.truncated")
    assert (cut["item_id"], cut["audio_end_ms"]) == (done["response"]["output"][0]["id"], 500)
    assert not told(events, "error")


def test_an_answer_is_cancelled(flow: Flow):
    events = flow("cancel")["events"]
    [done] = told(events, "response.done")
    assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    after = events[events.index(done) + 1 :]
    assert [event["type"] for event in after] in ([], ["rate_limits.updated"])
    assert not told(events, "error")


def test_the_server_hears_where_a_turn_ends(flow: Flow):
    events = flow("vad")["events"]
    names = [event["type"] for event in events if event["type"].startswith("input_audio_buffer")]
    assert [name.removeprefix("input_audio_buffer.") for name in names] == [
        "speech_started",
        "speech_stopped",
        "committed",
    ]
    [written] = told(events, "conversation.item.input_audio_transcription.completed")
    [done] = told(events, "response.done")
    assert written["transcript"] == done["response"]["output"][0]["content"][0]["text"] == SAID
    assert not told(events, "error")


def test_a_live_session(node: str, live_url: str, sounds: Path):
    """LiveWS takes ws: addresses too."""
    events = run_program([node, FOLDER / "client.mjs", "live", f"{live_url}/v1", "speaks", sounds])["events"]
    assert events[0]["type"] == "session.started"
    assert told(events, "session.output_transcript.delta")[0]["delta"]
    pieces = told(events, "session.output_audio.delta")
    assert pieces
    assert all(base64.b64decode(event["delta"]) for event in pieces)
    assert events[-1]["type"] == "session.closed"
    assert not told(events, "error")
