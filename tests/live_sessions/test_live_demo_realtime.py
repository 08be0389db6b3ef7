"""The published demo's later protocol on /v1/realtime?mode=..., in both its spellings."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from live_sessions.test_live_demo import Client, floats
from live_sessions.tools import LiveServer, jpeg, noise
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


@contextmanager
def talk(live: LiveServer, mode: str = "video") -> Iterator[Client]:
    with connect(f"ws://127.0.0.1:{live.port}/v1/realtime?mode={mode}", max_size=None) as socket:
        client = Client(socket)
        assert client.next() == {"type": "session.queue_done"}
        yield client


def frame(seed: int) -> str:
    return base64.b64encode(jpeg(seed)).decode()


def wav(pcm: np.ndarray) -> str:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        writer.writeframes(pcm.astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()


def closed(client: Client) -> int:
    with pytest.raises(ConnectionClosed) as end:
        client.next()
    return end.value.rcvd.code if end.value.rcvd else 1006


def test_the_early_spelling(live: LiveServer):
    with talk(live) as client:
        client.say("session.update", session={"instructions": "Talk.", "max_slice_nums": 1, "ref_audio": wav(noise(9))})
        created = client.next()
        assert (created["type"], created["prompt_length"]) == ("session.created", 5)
        assert created["session_id"]
        for n in range(3):
            fields = {"audio": floats(noise(n)), "video_frames": [frame(n)], "force_listen": True}
            client.say("input_audio_buffer.append", **fields)
            heard = client.next()
            assert heard == {"type": "response.listen", "kv_cache_length": heard["kv_cache_length"]}
        client.say("session.close", reason="user_stop")
        over = client.next()
        assert (over["type"], over["reason"]) == ("session.closed", "stopped")
        assert closed(client) == 1000


def test_the_later_spelling(live: LiveServer):
    with talk(live, "audio") as client:
        payload = {
            "system_prompt": "Talk.",
            "config": {"length_penalty": 1.1},
            "voice": {"ref_audio_base64": floats(noise(9))},
        }
        client.say("session.init", payload=payload)
        created = client.next()
        assert (created["type"], created["mode"]) == ("session.created", "full_duplex")
        client.say("input.append", input={"audio": floats(noise(1)), "force_listen": True})
        heard = client.next()
        assert (heard["type"], heard["kind"], heard["session_id"]) == (
            "response.output.delta",
            "listen",
            created["session_id"],
        )
        assert heard["metrics"]["kv_cache_length"] > 0
        client.say("input.append", input={"audio": floats(noise(1)), "video_frames": [frame(1)]})
        error = client.next()["error"]
        assert (error["type"], error["param"]) == ("client_error", "video_frames")
        client.say("session.close")
        assert client.next()["reason"] == "user_stop"


@pytest.mark.parametrize("early", [True, False])
def test_what_it_says_comes_with_its_sound(speaking: LiveServer, early: bool):
    with talk(speaking, "audio") as client:
        if early:
            client.say("session.update", session={"instructions": "Talk."})
        else:
            client.say("session.init", payload={"config": {"force_listen_count": 0}})
        client.next()
        text, sound = "", b""
        for n in range(12):
            said = {"audio": floats(noise(n))}
            client.say("input_audio_buffer.append", **said) if early else client.say("input.append", input=said)
        while not (text and sound):  # a unit may bring either, both or none
            event = client.next()
            text += event.get("text", "")
            sound += base64.b64decode(event.get("audio", ""))
        assert text
        samples = np.frombuffer(sound, "<f4")
        assert len(samples) > 0
        assert np.abs(samples).max() <= 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "sound before the session": ({"type": "input.append", "input": {"audio": ""}}, "type"),
    "an unknown field": ({"type": "session.init", "payload": {"voise": {}}}, "payload.voise"),
    "no WAVE file": ({"type": "session.update", "session": {"ref_audio": "AAAA"}}, "session.ref_audio"),
}


@pytest.mark.parametrize(("message", "param"), REFUSED.values(), ids=REFUSED)
def test_a_bad_beginning_is_refused_by_name(live: LiveServer, message: dict[str, Any], param: str):
    with talk(live) as client:
        client.socket.send(json.dumps(message))
        told = client.next()
        assert (told["type"], told["error"]["param"]) == ("error", param)
        assert closed(client) == 1008


def test_turns_are_elsewhere(live: LiveServer):
    with pytest.raises(InvalidStatus) as refused, talk(live, "chat"):
        pass
    assert json.loads(refused.value.response.body or b"")["error"]["param"] == "mode"
