"""The openai client over /v1/realtime and /v1/live/sessions; what goes over the wire is kept as golden transcripts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from clients.conftest import MODEL, question
from clients.wire import Wire, wired
from openai.resources.realtime.realtime import RealtimeConnection
from server.live import serve
from transcripts import keep

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient

SAID = "The small bird is near the window."
pytestmark = pytest.mark.slow


@pytest.fixture
def door(wire: Wire) -> Iterator[RealtimeConnection]:
    client = openai.OpenAI(base_url=f"http{wire.url[2:]}/v1", api_key="none")
    with client, client.realtime.connect(model=MODEL) as door:
        yield door


def until(door: RealtimeConnection, kind: str) -> Any:
    for event in door:
        assert event.type != "error", event
        if event.type == kind:
            return event
    raise AssertionError(f"no {kind}")


def begin(door: RealtimeConnection, **session: Any) -> None:
    until(door, "session.created")
    heard = {"turn_detection": None}
    door.session.update(session={"type": "realtime", "audio": {"input": heard}, **session})  # type: ignore[typeddict-item]
    until(door, "session.updated")


def hear(door: RealtimeConnection) -> None:
    pcm = question().tobytes()
    for start in range(0, len(pcm), 48_000):
        door.input_audio_buffer.append(audio=base64.b64encode(pcm[start : start + 48_000]).decode())


def test_a_text_is_answered(door: RealtimeConnection, wire: Wire):
    begin(door, output_modalities=["text"])
    part: Any = {"type": "input_text", "text": "Good morning!"}
    door.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})
    door.response.create()
    response = until(door, "response.done").response
    until(door, "rate_limits.updated")
    assert response.status == "completed"
    deltas = "".join(event["delta"] for event in wire.told("response.output_text.delta"))
    assert response.output[0].content[0].text == deltas != ""
    keep(wire.said, "realtime-text")


def test_speech_is_answered_with_speech_and_cut(door: RealtimeConnection, wire: Wire):
    begin(door, instructions="Transcribe the speech.")
    hear(door)
    door.input_audio_buffer.commit()
    door.response.create()
    [item] = until(door, "response.done").response.output
    assert item.content[0].transcript == SAID
    heard = b"".join(base64.b64decode(event["delta"]) for event in wire.told("response.output_audio.delta"))
    assert 1.0 < len(heard) / 48_000 < 5.0
    door.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=1000)
    until(door, "conversation.item.truncated")
    door.conversation.item.retrieve(item_id=item.id)
    kept = until(door, "conversation.item.retrieved").item.content[0].transcript
    assert SAID.startswith(kept)
    assert kept != SAID
    keep(wire.said, "realtime-speech")


def test_the_server_hears_where_a_turn_ends(door: RealtimeConnection, wire: Wire):
    heard = {"turn_detection": {"type": "server_vad"}, "transcription": {"model": "whisper-1"}}
    begin(door, instructions="Transcribe the speech.", output_modalities=["text"], audio={"input": heard})
    hear(door)
    until(door, "rate_limits.updated")
    if not wire.told("conversation.item.input_audio_transcription.completed"):
        until(door, "conversation.item.input_audio_transcription.completed")
    [written] = wire.told("conversation.item.input_audio_transcription.completed")
    [done] = wire.told("response.done")
    assert written["transcript"] == done["response"]["output"][0]["content"][0]["text"] == SAID
    keep(wire.said, "realtime-turns")


@pytest.mark.usefixtures("talkative")
def test_an_answer_is_cancelled(door: RealtimeConnection, wire: Wire):
    begin(door)
    part: Any = {"type": "input_text", "text": "Good morning!"}
    door.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})
    door.response.create()
    until(door, "response.output_audio.delta")
    door.response.cancel()
    response = until(door, "response.done").response
    until(door, "rate_limits.updated")
    assert response.status_details.reason == "client_cancelled"
    keep(wire.said, "realtime-cancel")


@pytest.fixture
def unspoken(golden_tiny: Path | None) -> Iterator[Wire]:
    """A very small random model that holds live sessions in text."""
    if golden_tiny is None:
        pytest.skip("the random checkpoint of the reference data is not there")
    config = EngineConfig(model=str(golden_tiny), max_model_len=2048, kv_cache_bytes=64 << 20, max_sessions=4)
    with EngineClient(config) as engine, serve(engine, served_model_name=MODEL, live_max_len=1024) as live:  # noqa: SIM117
        with wired(live.url) as wire:
            yield wire


def test_a_live_session(unspoken: Wire):
    with openai.OpenAI(base_url=f"http{unspoken.url[2:]}/v1", api_key="none") as client, client.live.connect() as door:
        own = {"listen_bias": 0.0, "force_listen_units": 0}
        audio = {"format": {"type": "audio/pcm", "rate": 24000}}
        session: Any = {"model": MODEL, "instructions": "Talk.", "audio": audio, "sensorium": own}
        door.send({"type": "session.start", "session": session})
        wait = iter(door)
        assert next(wait).type == "session.started"
        for kind in ("instructions", "thinking", "commentary"):
            note: Any = {"type": f"session.{kind}.append", "content": "The light is green.", "delegation_id": None}
            door.send(note)
            while next(wait).type != f"session.{kind}.appended":
                pass
        sound = base64.b64encode(question().tobytes()).decode()
        door.send({"type": "session.input_audio.append", "audio": sound})
        for _ in range(3):
            while next(wait).type != "session.output_transcript.delta":
                pass
        door.send({"type": "session.input_audio.mute"})
        while next(wait).type != "session.input_audio.muted":
            pass
        door.send({"type": "session.close"})
        while (event := next(wait)).type != "session.closed":
            assert event.type != "error"
    keep(unspoken.said, "live")
