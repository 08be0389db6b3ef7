"""/v1/realtime with the openai SDK and with bare sockets: every flow, both languages, hostile input."""

from __future__ import annotations

import base64
import json
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from server import samples
from server.live import Live, eventually, serve
from server.sockets import JsonSocket
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from sensorium.engine.client import EngineClient

SPEECH = Path(__file__).resolve().parents[2] / "sensorium/packaged/demo/speech.wav"
SAID = "The small bird is near the window."
ANSWERED = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
    "rate_limits.updated",
]
TEXT: dict[str, Any] = {"type": "string", "minLength": 6000}
ENDLESS: dict[str, Any] = {
    "tools": [
        {
            "type": "function",
            "name": "write",
            "parameters": {"type": "object", "properties": {"text": TEXT}, "required": ["text"]},
        }
    ],
    "tool_choice": {"type": "function", "name": "write"},
    "max_output_tokens": 1500,
}
"""A response that ends when it is made to: its grammar asks for more than its limit of tokens allows."""
GROWS = "response.function_call_arguments.delta"
MANUAL: dict[str, Any] = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}


class Client(JsonSocket):
    def error(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The error that an event is answered with."""
        self.send(kind, event_id="mine", **fields)
        event = self.next()
        assert event["type"] == "error", event
        assert event["error"]["event_id"] == "mine"
        return event["error"]

    def update(self, **session: Any) -> dict[str, Any]:
        self.send("session.update", session={**MANUAL, **session})
        return self.until("session.updated")[-1]["session"]

    def say(self, text: str, **more: Any) -> list[dict[str, Any]]:
        content = [{"type": "input_text", "text": text}]
        self.send("conversation.item.create", item={"type": "message", "role": "user", "content": content, **more})
        return self.until("conversation.item.done")

    def answer(self, **response: Any) -> list[dict[str, Any]]:
        self.send("response.create", response={"max_output_tokens": 8, **response})
        return self.until("rate_limits.updated")


@contextmanager
def talk(live: Live, query: str = "", **options: Any) -> Iterator[Client]:
    with connect(f"ws://127.0.0.1:{live.port}/v1/realtime{query}", max_size=None, **options) as socket:
        client = Client(socket)
        assert client.next()["type"] == "session.created"
        yield client


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    with talk(live) as client:
        client.update()
        yield client


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Their types; a run of one type counts once."""
    found: list[str] = []
    for event in events:
        if not found or found[-1] != event["type"]:
            found.append(event["type"])
    return found


def speech(rate: int = 24_000, silence_s: float = 0.0) -> np.ndarray:
    """The packaged sentence as int16 [n], with silence behind it."""
    with wave.open(str(SPEECH)) as file:
        samples_ = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float64)
        given = file.getframerate()
    places = np.arange(int(len(samples_) * rate / given)) * given / rate
    spoken = np.interp(places, np.arange(len(samples_)), samples_)
    return np.concatenate([spoken, np.zeros(int(silence_s * rate))]).astype("<i2")


def send_sound(client: Client, samples_: np.ndarray, step: int = 4800) -> None:
    for start in range(0, len(samples_), step):
        audio = base64.b64encode(samples_[start : start + step].tobytes()).decode()
        client.send("input_audio_buffer.append", audio=audio)


# ---- OpenAI's events ----------------------------------------------------------------------------------------------


def test_a_session_tells_what_is_in_force_before_anything_is_asked(live: Live):
    with connect(f"ws://127.0.0.1:{live.port}/v1/realtime?model=tiny") as socket:
        created = Client(socket).next()
    session = created["session"]
    assert created["event_id"]
    assert session["model"] == "tiny"
    assert session["output_modalities"] == ["text"]
    assert session["audio"]["input"]["turn_detection"]["interrupt_response"] is True


def test_text_is_answered_in_the_order_that_clients_rely_on(client: Client):
    [added, done] = client.say("What is that?", id="item_mine")
    assert added["item"]["id"] == done["item"]["id"] == "item_mine"
    events = client.answer(metadata={"asked": "by me"}, max_output_tokens=1)
    assert kinds(events) == ANSWERED
    assert events[0]["response"]["metadata"] == {"asked": "by me"}
    response = events[-2]["response"]
    assert response["status"] == "incomplete"
    assert response["status_details"]["reason"] == "max_output_tokens"
    assert response["usage"]["output_tokens"] == 1
    text = "".join(event["delta"] for event in events if event["type"].endswith("delta"))
    assert response["output"][0]["content"] == [{"type": "output_text", "text": text}]
    assert len({event["event_id"] for event in events}) == len(events)


def test_the_conversation_is_what_the_chat_door_would_get(client: Client, live: Live):
    client.update(instructions="Be brief.")
    client.say("Who are you?")
    client.say("And where?")
    [item] = client.answer()[-2]["response"]["output"]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Who are you?"}, {"type": "text", "text": "And where?"}]},
    ]
    status, body = live.post({"messages": messages, "max_tokens": 8, "model": "tiny"})
    assert status == 200
    assert item["content"][0]["text"] == body["choices"][0]["message"]["content"]


def test_the_openai_sdk_holds_a_conversation(live: Live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none") as sdk, sdk.realtime.connect(model="tiny") as door:
        door.session.update(session={"type": "realtime", "output_modalities": ["text"], "max_output_tokens": 6})
        part: Any = {"type": "input_text", "text": "Hello?"}
        door.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})
        door.response.create()
        text, seen = "", []
        for event in door:
            seen.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                assert event.response.output is not None
                assert event.response.output[0].content[0].text == text  # type: ignore[union-attr, index]
                break
        assert seen[:2] == ["session.created", "session.updated"]
        assert "error" not in seen


def test_speech_is_heard_and_answered_after_a_commit(client: Client, packaged_model: Path):
    client.say("Transcribe the speech.")
    send_sound(client, speech())
    client.send("input_audio_buffer.commit")
    events = client.until("conversation.item.done")
    assert kinds(events) == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    assert events[0]["item_id"] == events[1]["item"]["id"]
    response = client.answer(max_output_tokens=24)[-2]["response"]
    assert response["output"][0]["content"][0]["text"] == SAID
    assert response["usage"]["input_token_details"]["audio_tokens"] > 0


@pytest.mark.parametrize("kind", ["audio/pcm", "audio/pcmu"])
def test_server_vad_ends_turns_and_answers_them(live: Live, packaged_model: Path, kind: str):
    rate = 16_000 if kind == "audio/pcm" else 8_000
    with talk(live) as client:
        heard = {"format": {"type": kind, "rate": rate}, "turn_detection": {"type": "server_vad"}, "transcription": {}}
        client.update(audio={"input": heard}, instructions="Transcribe the speech.", max_output_tokens=24)
        samples_ = np.concatenate([np.zeros(rate // 2, "<i2"), speech(rate, silence_s=1.0)])
        data = samples_ if kind == "audio/pcm" else to_mulaw(samples_)
        send_sound(client, data, step=1600)
        events = client.until("rate_limits.updated")
        while not any(event["type"].endswith("transcription.completed") for event in events):
            events.append(client.next())
    order = [event for event in events if event["type"].startswith("input_audio_buffer")]
    assert kinds(order) == [
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
    ]
    assert len({event["item_id"] for event in order}) == 1
    assert 0 <= order[0]["audio_start_ms"] <= 500 < order[1]["audio_end_ms"]
    done = next(event for event in events if event["type"] == "response.done")
    assert done["response"]["status"] == "completed"
    [completed] = [event for event in events if event["type"].endswith("transcription.completed")]
    assert completed["usage"]["type"] == "duration"
    if kind == "audio/pcm":
        assert completed["transcript"] == SAID


def to_mulaw(samples_: np.ndarray) -> np.ndarray:
    """G.711 by its definition: sign, exponent and mantissa of the biased magnitude, inverted."""
    magnitude = np.minimum(np.abs(samples_.astype(np.int32)), 32635) + 132
    exponent = np.floor(np.log2(magnitude)).astype(np.int32) - 7
    mantissa = (magnitude >> (exponent + 3)) & 15
    return (~((samples_ < 0) * 128 | exponent << 4 | mantissa) & 255).astype(np.uint8)


def test_whoever_speaks_interrupts_the_answer(live: Live):
    with talk(live) as client:
        client.update(audio={"input": {"turn_detection": {"type": "server_vad"}}})
        client.say("Write on.")
        client.send("response.create", response=ENDLESS)
        client.until(GROWS)
        send_sound(client, np.concatenate([np.zeros(12_000, "<i2"), speech()]))
        events = client.until("response.done")
        assert "input_audio_buffer.speech_started" in kinds(events)
        assert events[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
        assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    assert eventually(lambda: live.engine.num_requests == 0)


def test_an_answer_can_be_cancelled_and_nothing_follows_its_end(client: Client, live: Live):
    client.say("Write on.")
    client.send("response.create", response=ENDLESS)
    client.until(GROWS)
    client.send("response.cancel")
    done = client.until("response.done")[-1]["response"]
    assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert client.next()["type"] == "rate_limits.updated"
    assert client.error("response.cancel")["code"] == "response_cancel_not_active"
    assert eventually(lambda: live.engine.num_requests == 0)
    assert kinds(client.answer()) == ANSWERED, "the conversation goes on"


def test_nulls_are_fields_left_out_and_faults_name_their_event(client: Client):
    client.update(instructions="Be brief.", tool_choice="none")
    client.say("Hello?")
    left_out = {"instructions": None, "tools": None, "tool_choice": None, "parallel_tool_calls": None}
    assert kinds(client.answer(**left_out)) == ANSWERED
    client.update(tool_choice="required")
    assert client.error("response.create")["param"] == "tool_choice", "its tools may come later, but not too late"
    assert client.error("response.create", response={"instructions": 7})["code"] == "invalid_value"
    assert client.error("conversation.item.retrieve", item_id="x")["code"] == "item_retrieve_invalid_item_id"
    client.say("Hello?", id="a")
    item = {"type": "message", "role": "user", "id": "a", "content": [{"type": "input_text", "text": "Hello?"}]}
    assert client.error("conversation.item.create", item=item)["code"] == "item_create_duplicate_item_id"


def test_fields_of_a_transcription_that_are_not_used_are_not_told(client: Client, packaged_model: Path):
    session = client.update(audio={"input": {"turn_detection": None, "transcription": {"model": "whisper-1"}}})
    assert session["audio"]["input"]["transcription"] == {"model": "whisper-1", "language": None, "prompt": None}


def test_one_answer_at_a_time_but_others_beside_the_conversation(client: Client):
    client.say("Write on.")
    client.send("response.create", response=ENDLESS)
    client.until(GROWS)
    client.send("response.create", event_id="second")
    client.send(
        "response.create", response={"conversation": "none", "input": [], "instructions": "Hi.", "max_output_tokens": 2}
    )
    errors, others = [], []
    while not others:
        event = client.next()
        if event["type"] == "error":
            errors.append(event["error"])
        if event["type"] == "response.done" and event["response"]["conversation_id"] is None:
            others.append(event["response"])
    assert [error["code"] for error in errors] == ["conversation_already_has_active_response"]
    assert others[0]["usage"]["output_tokens"] == 2
    client.send("response.cancel")


def test_pictures_and_earlier_items_are_seen(client: Client, packaged_model: Path):
    url = samples.data_url("image/png", (SPEECH.parent / "scene.png").read_bytes())
    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "How many objects are there?"}]
    client.send("conversation.item.create", item={"type": "message", "role": "user", "content": parts})
    [added, _] = client.until("conversation.item.done")
    assert "image_url" not in added["item"]["content"][0]
    response = client.answer()[-2]["response"]
    assert response["output"][0]["content"][0]["text"] == "4"
    assert response["usage"]["input_token_details"]["image_tokens"] > 0


def test_a_function_is_called_and_its_output_goes_back(client: Client):
    tool = {
        "type": "function",
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"at": {"enum": ["x"]}},
            "required": ["at"],
            "additionalProperties": False,
        },
    }
    client.update(tools=[tool], tool_choice={"type": "function", "name": "look"})
    client.say("Look there.")
    events = client.answer(max_output_tokens=64)
    [call] = events[-2]["response"]["output"]
    assert call["type"] == "function_call"
    assert call["name"] == "look"
    assert json.loads(call["arguments"]) == {"at": "x"}
    arguments = "".join(event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta")
    assert arguments == call["arguments"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "a tree"}
    client.send("conversation.item.create", item=output)
    client.until("conversation.item.done")
    assert kinds(client.answer(tool_choice="none")) == ANSWERED


def test_items_can_be_placed_read_and_deleted(client: Client):
    client.say("two", id="b")
    item = {"type": "message", "role": "user", "id": "a", "content": [{"type": "input_text", "text": "one"}]}
    client.send("conversation.item.create", item=item, previous_item_id="root")
    assert client.until("conversation.item.done")[0]["previous_item_id"] is None
    client.send("conversation.item.retrieve", item_id="a")
    assert client.next()["item"]["content"] == [{"type": "input_text", "text": "one"}]
    client.send("conversation.item.delete", item_id="a")
    assert client.next() == {"type": "conversation.item.deleted", "event_id": ANY, "item_id": "a"}
    assert client.error("conversation.item.delete", item_id="a")["code"] == "item_not_found"
    assert client.error("conversation.item.create", item={**item, "id": "b"})["param"] == "item.id"


class _Any:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


ANY = _Any()


def test_the_oldest_turns_are_left_out_when_the_context_is_full(client: Client):
    for _ in range(4):
        client.say("word " * 600)
        client.send(
            "conversation.item.create",
            item={"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}]},
        )
        client.until("conversation.item.done")
    client.say("Well?")
    answered = client.answer()[-2]["response"]
    assert answered["status"] != "failed", answered
    client.update(truncation="disabled")
    failed = client.answer()
    assert failed[-2]["response"]["status"] == "failed"
    assert failed[-2]["response"]["status_details"]["error"]["code"] == "context_length_exceeded"


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "speech": ({"output_modalities": ["audio"]}, "session.output_modalities"),
    "another model": ({"model": "other"}, "session.model"),
    "a format that is none": ({"input_audio_format": "mp3"}, "session.audio.input.format"),
    "tools that have one name": (
        {"tools": [{"type": "function", "name": "a"}, {"type": "function", "name": "a"}], "tool_choice": "required"},
        "tools",
    ),
}


@pytest.mark.parametrize(("session", "param"), REFUSED.values(), ids=REFUSED)
def test_a_refused_update_names_its_field_and_changes_nothing(client: Client, session: dict[str, Any], param: str):
    error = client.error("session.update", session={**session, "instructions": "changed"})
    assert error["param"] == param
    assert client.update()["instructions"] == ""


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "no JSON": ("{", "invalid_event"),
    "no object": ("[1]", "invalid_event"),
    "no type": ("{}", "invalid_event"),
    "deep": ("[" * 100_000, "invalid_event"),
    "binary": (b"\xff\x00", "invalid_event"),
    "unknown": ('{"type": "response.sing"}', "unknown_event_type"),
    "a wrong type": ('{"type": "input_audio_buffer.append", "audio": 7}', "invalid_value"),
    "an unknown field": ('{"type": "session.update", "session": {"voise": "x"}}', "invalid_value"),
    "no base64": ('{"type": "input_audio_buffer.append", "audio": "!!"}', "invalid_audio"),
    "half a sample": ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "invalid_audio"),
    "nothing to commit": ('{"type": "input_audio_buffer.commit"}', "input_audio_buffer_commit_empty"),
    "no such item": ('{"type": "conversation.item.delete", "item_id": "x"}', "item_not_found"),
    "an empty item": (
        '{"type": "conversation.item.create", "item": {"type": "message"}}',
        "missing_required_parameter",
    ),
}


@pytest.mark.parametrize(("message", "code"), HOSTILE.values(), ids=HOSTILE)
def test_a_bad_message_gets_one_error_and_harms_nothing(client: Client, message: str | bytes, code: str):
    client.socket.send(message)
    event = client.next()
    assert event["type"] == "error"
    assert event["error"]["code"] == code
    client.say("Still there?")
    assert kinds(client.answer()) == ANSWERED


def test_a_broken_picture_fails_its_answer_and_can_be_taken_out(client: Client):
    url = "data:image/png;base64,AAAA"
    item = {"type": "message", "role": "user", "id": "bad", "content": [{"type": "input_image", "image_url": url}]}
    client.send("conversation.item.create", item=item)
    client.until("conversation.item.done")
    client.say("What is it?")
    events = client.answer()
    assert kinds(events) == ["response.created", "response.done", "rate_limits.updated"]
    assert events[1]["response"]["status"] == "failed"
    client.send("conversation.item.delete", item_id="bad")
    client.next()
    assert kinds(client.answer()) == ANSWERED


def test_sound_that_nobody_takes_is_bounded(engine: EngineClient):
    with serve(engine, max_audio_filesize_mb=1) as small, talk(small) as client:
        client.update()
        audio = base64.b64encode(np.zeros(24_000 * 20, "<i2").tobytes()).decode()
        client.send("input_audio_buffer.append", audio=audio)
        error = client.error("input_audio_buffer.append", audio=audio)
        assert "input buffer" in error["message"]
        client.send("input_audio_buffer.clear")
        assert client.next()["type"] == "input_audio_buffer.cleared"
        client.send("input_audio_buffer.append", audio=audio)
        client.say("Still there?")


# ---- who may come in ----------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_before_the_socket_opens(engine: EngineClient):
    with serve(engine, api_keys=("open sesame",)) as locked:
        with pytest.raises(InvalidStatus) as refused, talk(locked):
            pass
        assert refused.value.response.status_code == 401
        body = json.loads(refused.value.response.body or b"{}")
        assert body["error"]["type"] == "authentication_error"
        with talk(locked, additional_headers={"authorization": "Bearer open sesame"}):
            pass
    with serve(engine, api_keys=("open-sesame",)) as locked:
        offered: Any = ["realtime", "openai-insecure-api-key.open-sesame"]
        with talk(locked, subprotocols=offered) as client:
            assert client.socket.subprotocol == "realtime"


def test_pages_of_other_sites_open_no_socket(live: Live):
    with pytest.raises(InvalidStatus) as refused, talk(live, origin="http://evil.example"):  # type: ignore[arg-type]
        pass
    assert refused.value.response.status_code == 403


def test_an_unknown_model_a_plain_get_and_too_many_are_told(engine: EngineClient, live: Live):
    with pytest.raises(InvalidStatus) as refused, talk(live, "?model=other"):
        pass
    assert refused.value.response.status_code == 404
    assert live.request("GET", "/v1/realtime")[0] == 426
    with serve(engine, max_realtime_sessions=1) as small, talk(small):
        with connect(f"ws://127.0.0.1:{small.port}/v1/realtime") as socket:
            assert json.loads(socket.recv())["error"]["code"] == "session_limit_reached"
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013
        assert "sensorium:realtime_sessions" in small.request("GET", "/metrics")[2].decode()


def test_leaving_ends_the_work(live: Live):
    with talk(live) as client:
        client.update()
        client.say("Write on.")
        client.send("response.create", response=ENDLESS)
        client.until(GROWS)
    assert eventually(lambda: live.engine.num_requests == 0)


# ---- other languages ----------------------------------------------------------------------------------------------


def test_the_beta_has_its_own_spelling(live: Live):
    with talk(live, additional_headers={"openai-beta": "realtime=v1"}) as client:
        assert client.next()["type"] == "conversation.created"
        client.send("session.update", session={"modalities": ["text"], "turn_detection": None})
        session = client.next()["session"]
        assert session["modalities"] == ["text"]
        assert session["turn_detection"] is None
        content = [{"type": "input_text", "text": "Hello?"}]
        client.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        assert client.next()["type"] == "conversation.item.created"
        events = client.answer()
        assert "response.text.delta" in kinds(events)
        done = next(event for event in events if event["type"] == "response.done")
        assert done["response"]["output"][0]["content"][0]["type"] == "text"


def test_vllm_s_clients_get_their_transcript(live: Live, packaged_model: Path):
    with talk(live) as client:
        client.send("session.update", model="tiny")
        client.send("input_audio_buffer.commit")
        send_sound(client, speech(16_000))
        client.send("input_audio_buffer.commit", final=True)
        events = client.until("transcription.done")
    assert events[-1]["text"] == SAID
    assert "".join(event["delta"] for event in events[:-1]) == SAID
    assert events[-1]["usage"]["type"] == "duration"


def test_vllm_s_errors_are_texts_with_codes(live: Live):
    expected = {
        '{"type": "session.update", "model": "other"}': "model_not_found",
        '{"type": "input_audio_buffer.commit"}': "model_not_validated",
        '{"type": "sing"}': "unknown_event",
        "{": "invalid_json",
        '{"type": "input_audio_buffer.append", "audio": "!!"}': "invalid_audio",
    }
    with talk(live) as client:
        for message, code in expected.items():
            client.socket.send(message)
            event = client.next()
            assert (event["type"], event["code"]) == ("error", code)
            assert isinstance(event["error"], str)


class Everything:
    """A detector of the operator's own, to whom all is speech."""

    def reset(self) -> None:
        pass

    def probability(self, window: np.ndarray) -> float:
        return 1.0


def test_the_operator_says_what_hears_speech(engine: EngineClient):
    with serve(engine, vad=f"{__name__}:Everything") as server, talk(server) as client:
        send_sound(client, np.zeros(24_000, dtype="<i2"))
        assert client.next()["type"] == "input_audio_buffer.speech_started"
