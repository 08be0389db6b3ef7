"""/v1/live/sessions with the openai SDK and with bare sockets."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import pytest
from live_sessions.tools import LiveServer, jpeg, noise
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

SPEAKS: dict[str, Any] = {"sensorium": {"listen_bias": 0.0, "force_listen_units": 0}}
LISTENS: dict[str, Any] = {"sensorium": {"listen_bias": 1e6, "force_listen_units": 10}}
PCM16: dict[str, Any] = {"audio": {"format": {"type": "audio/pcm", "rate": 16000}}}


class Client:
    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def until(self, kind: str) -> dict[str, Any]:
        while (event := json.loads(self.socket.recv(timeout=60)))["type"] != kind:
            assert event["type"] != "error", event
        return event

    def start(self, **session: Any) -> dict[str, Any]:
        self.say("session.start", session={"model": "tiny", **PCM16, **session}, event_id="mine")
        return self.until("session.started")

    def hear(self, pcm: np.ndarray) -> None:
        self.say("session.input_audio.append", audio=base64.b64encode(pcm.astype("<i2").tobytes()).decode())

    def error(self, kind: str, **fields: Any) -> dict[str, Any]:
        self.say(kind, event_id="wrong", **fields)
        error = self.until_error()
        assert error["client_event_id"] == "wrong"
        return error

    def until_error(self) -> dict[str, Any]:
        while (event := json.loads(self.socket.recv(timeout=60)))["type"] != "error":
            pass
        return event["error"]


@contextmanager
def talk(live: LiveServer) -> Iterator[Client]:
    with connect(f"ws://127.0.0.1:{live.port}/v1/live/sessions", max_size=None) as socket:
        yield Client(socket)


def test_a_session_with_the_sdk(live: LiveServer):
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none")
    kinds: list[str] = []
    with client.live.connect() as connection:
        session: Any = {"model": "tiny", "instructions": "Talk.", **PCM16, **SPEAKS}
        connection.send({"type": "session.start", "session": session})
        for n in range(3):
            sound = base64.b64encode(noise(n).astype("<i2").tobytes()).decode()
            if n == 0:
                started = connection.recv()
                assert started.type == "session.started"
                assert started.session.status == "active"
                assert started.session.id.startswith("live_")
                kinds.append(started.type)
            connection.send({"type": "session.input_audio.append", "audio": sound})
        connection.send({"type": "session.close"})
        for event in connection:
            kinds.append(event.type)
            if event.type == "session.output_transcript.delta":
                assert event.end_ms > event.start_ms
            if event.type == "session.closed":
                assert event.reason == "close_requested"
                assert event.usage.seconds == 0
                break
    told = [kind for n, kind in enumerate(kinds) if n == 0 or kinds[n - 1] != kind]
    assert told == ["session.started", "info", "session.output_transcript.delta", "session.closed"]


def test_sound_comes_as_it_is_played_with_silence_between(speaking: LiveServer):
    with talk(speaking) as client:
        client.say(
            "session.start",
            session={"model": speaking.engine.model_name, "audio": {"output": {"voice": "marin"}}, **SPEAKS},
        )
        assert client.until("session.started")["session"]["audio"]["format"] == {"type": "audio/pcm", "rate": 24000}
        pieces: list[bytes] = []
        for _ in range(5):
            speaking.clock.advance(0.1 + 1e-6)
            pieces.append(base64.b64decode(client.until("session.output_audio.delta")["delta"]))
        assert {len(piece) for piece in pieces} == {4800}
        assert not any(b"".join(pieces).strip(b"\0")), "nothing was said yet"
        client.hear(noise(1, 4 * 24_000))
        delta = client.until("session.output_transcript.delta")
        assert delta["start_ms"] >= 500, "behind the silence"
        assert delta["end_ms"] >= delta["start_ms"]
        spoken = b""
        while not any(spoken):
            client.hear(np.zeros(1))  # however long the sound takes, the session is not idle
            speaking.clock.advance(0.1 + 1e-6)
            spoken = base64.b64decode(client.until("session.output_audio.delta")["delta"])
        client.say("session.close")
        client.until("session.closed")


def test_silence_can_be_left_out(speaking: LiveServer):
    with talk(speaking) as client:
        client.say("session.start", session={"sensorium": {"silence": "omit", "force_listen_units": 5}})
        client.until("session.started")
        speaking.clock.advance(5)
        client.say("session.input_audio.mute")
        client.until("session.input_audio.muted")
        client.say("session.close")
        assert client.until("session.closed")["reason"] == "close_requested"


def test_steering_pictures_and_muting(live: LiveServer):
    with talk(live) as client:
        assert client.start(**LISTENS)["client_event_id"] == "mine"
        client.say("session.input_image.append", image="data:image/jpeg;base64," + base64.b64encode(jpeg()).decode())
        for name in ("instructions", "thinking", "commentary"):
            client.say(f"session.{name}.append", content="The light is green.", delegation_id=None, event_id=name)
            assert client.until(f"session.{name}.appended")["client_event_id"] == name
        client.hear(noise())
        client.say("session.input_audio.mute")
        client.until("session.input_audio.muted")
        client.say("session.input_audio.unmute")
        client.until("session.input_audio.unmuted")
        client.say("session.update", session={"triggers": []})
        client.until("session.updated")
        client.say("session.close")
        client.until("session.closed")


def test_a_session_can_be_asked_to_speak_first(live: LiveServer):
    """Also in the units at its start in which the model only listens by itself."""
    with talk(live) as client:
        client.start(sensorium={"force_listen_units": 3})
        client.hear(noise())
        client.say("session.commentary.append", content="Greet the user.", delegation_id=None)
        client.hear(noise())
        delta = client.until("session.output_transcript.delta")
        assert delta["start_ms"] == 2000, "with the unit that follows it"
        client.say("session.close")
        client.until("session.closed")


@pytest.mark.parametrize(
    ("session", "param"),
    [
        ({"model": "other"}, "model"),
        ({"delegation": {"type": "responses", "responses": {}}}, "session.delegation"),
        ({"triggers": [{}]}, "session.triggers"),
        ({"store": True}, "session.store"),
        ({"audio": {"format": {"type": "audio/pcmu", "rate": 8000}}}, "session.audio.format"),
        ({"speed": 2}, "session.speed"),
        ({"sensorium": {"listen_bias": -1}}, "listen_bias"),
    ],
)
def test_what_is_not_served_is_refused_by_name(live: LiveServer, session: dict[str, Any], param: str):
    with talk(live) as client:
        client.say("session.start", session={"model": "tiny", **session}, event_id="mine")
        error = client.until_error()
        assert (error["param"], error["client_event_id"]) == (param, "mine")
        with pytest.raises(ConnectionClosed):
            client.socket.recv(timeout=60)


def test_wrong_commands_change_nothing(live: LiveServer):
    with talk(live) as client:
        client.start(**LISTENS)
        assert client.error("session.input_audio.append", audio="!!")["param"] == "audio"
        assert client.error("session.input_audio.append", audio="AAAA")["param"] == "audio"
        assert client.error("session.thinking.append", content="x", delegation_id="d")["param"] == "delegation_id"
        assert client.error("session.input_image.append", image="AAAA", at_ms=1)["param"] == "at_ms"
        assert client.error("session.start", session={})["param"] == "type"
        assert client.error("session.instructions.append", content="x" * 5000)["param"] == "content"
        client.socket.send("[]")
        client.until_error()
        client.socket.send(b"binary")
        client.until_error()
        client.say("session.close")
        client.until("session.closed")


def test_who_leaves_gives_the_place_back_at_once(live: LiveServer):
    for _ in range(6):
        with talk(live) as client:
            client.start(**LISTENS)
    assert live.request("POST", "/v1/live/sessions")[0] == 501
    assert live.request("GET", "/v1/live/sessions")[0] == 426
