"""Answers that are heard on /v1/realtime: order of events, formats, voices, interruption, truncation."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest
from server.live import Live, eventually
from server.test_realtime import Client, kinds, send_sound, speech, talk

from sensorium.engine.client import EngineClient
from sensorium.server.realtime.heard import heard_part

HEARD = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
    "rate_limits.updated",
]
DELTAS = ("response.output_audio.delta", "response.output_audio_transcript.delta")


@pytest.fixture
def client(speaking: Live) -> Iterator[Client]:
    with talk(speaking) as client:
        client.update()
        yield client


@pytest.fixture
def talkative(spoken_engine: EngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers go on until they are stopped."""
    monkeypatch.setattr(spoken_engine, "default_sampling", replace(spoken_engine.default_sampling, min_tokens=600))


def sound(events: list[dict[str, Any]]) -> bytes:
    return b"".join(base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta")


def transcript(events: list[dict[str, Any]]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_audio_transcript.delta")


def test_an_answer_is_heard_in_the_order_that_clients_rely_on(client: Client):
    client.say("Hello?")
    events = client.answer()
    assert [kind for kind in kinds(events) if kind not in DELTAS] == HEARD
    assert kinds(events)[:4] == HEARD[:4]
    added = next(event for event in events if event["type"] == "response.content_part.added")
    assert added["part"] == {"type": "audio", "transcript": ""}
    pieces = [event for event in events if event["type"] == "response.output_audio.delta"]
    assert all(len(base64.b64decode(piece["delta"])) <= 0.4 * 48_000 for piece in pieces)
    response = events[-2]["response"]
    assert response["output_modalities"] == ["audio"]
    assert response["audio"]["output"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert response["output"][0]["content"] == [{"type": "output_audio", "transcript": transcript(events)}]
    details = response["usage"]["output_token_details"]
    assert details["audio_tokens"] == pytest.approx(len(sound(events)) / 1920, abs=1)
    assert details["text_tokens"] + details["audio_tokens"] == response["usage"]["output_tokens"]


def test_text_alone_is_still_possible(client: Client):
    client.say("Hello?")
    events = client.answer(output_modalities=["text"])
    assert not sound(events)
    assert events[-2]["response"]["output"][0]["content"][0]["type"] == "output_text"


@pytest.mark.parametrize(
    ("form", "rate", "width"), [("audio/pcm", 16_000, 2), ("audio/pcmu", 8000, 1), ("audio/pcma", 8000, 1)]
)
def test_other_formats(client: Client, form: str, rate: int, width: int):
    session = client.update(audio={"output": {"format": {"type": form, "rate": rate}, "voice": "alloy", "speed": 1.5}})
    assert session["audio"]["output"] == {"format": {"type": form, "rate": rate}, "voice": "alloy", "speed": 1.5}
    client.say("Hello?")
    events = client.answer()
    tokens = events[-2]["response"]["usage"]["output_token_details"]["audio_tokens"]
    assert len(sound(events)) / width / rate == pytest.approx(tokens / 25 / 1.5, rel=0.2, abs=0.1)


def test_voices_are_checked_and_stay(client: Client):
    error = client.error("session.update", session={"type": "realtime", "audio": {"output": {"voice": "nobody"}}})
    assert error["param"] == "session.audio.output.voice"
    client.say("Hello?")
    client.answer(max_output_tokens=2)
    error = client.error("session.update", session={"type": "realtime", "audio": {"output": {"voice": "marin"}}})
    assert (error["code"], error["param"]) == ("cannot_update_voice", "session.audio.output.voice")


def test_what_was_not_heard_is_forgotten(client: Client):
    client.say("Hello?")
    events = client.answer()
    [item] = events[-2]["response"]["output"]
    whole_ms = len(sound(events)) // 48
    too_long = client.error(
        "conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=whole_ms + 100
    )
    assert too_long["param"] == "audio_end_ms"
    client.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=whole_ms // 3)
    cut = client.next()
    assert (cut["type"], cut["audio_end_ms"]) == ("conversation.item.truncated", whole_ms // 3)
    client.send("conversation.item.retrieve", item_id=item["id"])
    kept = client.next()["item"]["content"][0]["transcript"]
    assert transcript(events).startswith(kept)
    assert len(kept) < len(transcript(events))
    error = client.error("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=whole_ms)
    assert error["param"] == "audio_end_ms"


@pytest.mark.parametrize(
    ("text", "heard_ms", "total_ms", "kept"),
    [
        ("One two three four.", 0, 1000, ""),
        ("One two three four.", 1000, 1000, "One two three four."),
        ("One two three four.", 500, 1000, "One two"),  # not half a word
        ("One two three four.", 400, None, "One"),  # sound that was cut short: by the usual length of a letter
        ("One two three four.", 9000, None, "One two three four."),
        ("你好，今天天气很好。", 500, 1000, "你好，今天"),
        ("", 500, 1000, ""),
    ],
)
def test_words_are_found_by_their_share_of_the_sound(text: str, heard_ms: int, total_ms: int | None, kept: str):
    assert heard_part(text, heard_ms, total_ms) == kept


@pytest.mark.usefixtures("talkative")
def test_speech_of_the_user_ends_the_sound(speaking: Live):
    with talk(speaking) as client:
        heard = {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": {"type": "server_vad"}}
        client.update(audio={"input": heard})
        client.say("Go on.")
        client.send("response.create", response={"max_output_tokens": 600})
        client.until("response.output_audio.delta")
        send_sound(client, np.concatenate([np.zeros(8000, "<i2"), speech(16_000)]), step=1600)
        before = client.until("input_audio_buffer.speech_started")
        after = client.until("response.done")
        assert before
        late = [event["type"] for event in after].index("response.output_audio.done")
        assert not any(event["type"] == "response.output_audio.delta" for event in after[late:])
        response = after[-1]["response"]
        assert response["status"] == "cancelled"
        assert response["status_details"]["reason"] == "turn_detected"
        item = response["output"][0]["id"]
        client.send("conversation.item.truncate", item_id=item, content_index=0, audio_end_ms=0)
        events = [client.next()]
        while events[-1]["type"] != "conversation.item.truncated":
            events.append(client.next())
    assert eventually(lambda: speaking.engine.num_requests == 0)


@pytest.mark.usefixtures("talkative")
def test_cutting_an_answer_that_is_being_made_ends_it(client: Client):
    client.say("Go on.")
    client.send("response.create", response={"max_output_tokens": 600})
    first = client.until("response.output_audio.delta")[-1]
    heard_ms = len(base64.b64decode(first["delta"])) / 48
    client.send("conversation.item.truncate", item_id=first["item_id"], content_index=0, audio_end_ms=round(heard_ms))
    events = client.until("conversation.item.truncated")
    [done] = [event for event in events if event["type"] == "response.done"]
    assert done["response"]["status_details"]["reason"] == "client_cancelled"
    assert kinds(client.answer(output_modalities=["text"], max_output_tokens=2))[-1] == "rate_limits.updated"


@pytest.mark.usefixtures("talkative")
def test_clearing_the_output_ends_the_answer(client: Client):
    client.say("Go on.")
    client.send("response.create", response={"max_output_tokens": 600})
    client.until("response.output_audio.delta")
    client.send("output_audio_buffer.clear")
    response = client.until("response.done")[-1]["response"]
    assert response["status_details"]["reason"] == "client_cancelled"


@pytest.mark.usefixtures("talkative")
def test_leaving_ends_the_work(speaking: Live):
    with talk(speaking) as client:
        client.update()
        client.say("Go on.")
        client.send("response.create", response={"max_output_tokens": 600})
        client.until("response.output_audio.delta")
    assert eventually(lambda: speaking.engine.num_requests == 0)


def test_the_openai_sdk_hears_an_answer(speaking: Live):
    with (
        openai.OpenAI(base_url=f"{speaking.url}/v1", api_key="none") as sdk,
        sdk.realtime.connect(model="tiny") as door,
    ):
        door.session.update(session={"type": "realtime", "output_modalities": ["audio"], "max_output_tokens": 6})
        part: Any = {"type": "input_text", "text": "Hello?"}
        door.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})
        door.response.create()
        heard, said = b"", ""
        for event in door:
            assert event.type != "error", event
            if event.type == "response.output_audio.delta":
                heard += base64.b64decode(event.delta)
            elif event.type == "response.output_audio_transcript.delta":
                said += event.delta
            elif event.type == "response.done":
                assert event.response.output is not None
                assert event.response.output[0].content[0].transcript == said  # type: ignore[union-attr, index]
                break
        assert np.frombuffer(heard, "<i2").any()


def test_the_beta_has_its_own_spelling(speaking: Live):
    with talk(speaking, additional_headers={"openai-beta": "realtime=v1"}) as client:
        assert client.next()["type"] == "conversation.created"
        client.send(
            "session.update", session={"voice": "alloy", "output_audio_format": "g711_ulaw", "turn_detection": None}
        )
        session = client.next()["session"]
        assert (session["modalities"], session["voice"]) == (["audio", "text"], "alloy")
        assert session["output_audio_format"] == "g711_ulaw"
        content = [{"type": "input_text", "text": "Hello?"}]
        client.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        assert client.next()["type"] == "conversation.item.created"
        events = kinds(client.answer())
        assert "response.audio.delta" in events
        assert "response.audio_transcript.done" in events
