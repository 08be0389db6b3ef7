"""Sessions that speak, on the tiny checkpoint with a codec: sound, turns, interruptions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from live_sessions.tools import SPEAKS, LiveServer, duplex, noise
from server.live import eventually


def sounds(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["type"] == "sound"]


@pytest.mark.parametrize("rate", [24_000, 16_000])
def test_a_turn_is_heard(speaking: LiveServer, rate: int):
    with duplex(speaking) as client:
        ready = client.start(**SPEAKS, audio={"in": 16_000, "out": rate}, voice="anna")
        assert ready["capabilities"]["speech"] is True
        assert ready["audio"]["out"] == rate
        units = [client.second(n) for n in range(5)]
        client.say("stop")
        usage = client.until("bye")["usage"]
    heard = sounds(client.events)
    assert heard
    assert all(unit["ms"]["speech"] is not None for unit in units if unit["decision"] == "speak")
    place = 0
    for number, event in enumerate(heard):
        assert (event["sequence"], event["position"]) == (number, place)
        place += len(event["pcm"]) // 2
    assert usage["out_samples"] == place == units[-1]["out_samples"]
    assert np.frombuffer(b"".join(event["pcm"] for event in heard), "<i2").any()
    last = next(event for event in reversed(client.events) if event["type"] == "unit")
    assert client.events.index(heard[-1]) < client.events.index(last), "a unit is over when its sound is"


def test_no_sound_of_a_turn_follows_its_end(speaking: LiveServer):
    with duplex(speaking) as client:
        client.start(**SPEAKS)
        cancelled = 0
        for n in range(8):
            client.sound(noise(n))
            client.until("turn", event="start") if n == 0 else None
            if n % 2:
                client.say("interrupt")
            client.until("unit")
        client.say("stop")
        client.until("bye")
    turn, is_open = 0, False
    for event in client.events:
        if event["type"] == "turn":
            is_open = event["event"] == "start"
            cancelled += event["event"] == "cancelled"
            turn = event["id"]
        elif event["type"] == "sound":
            assert is_open, f"sound after turn {turn} was over"
    assert cancelled


def test_who_finds_all_voices_taken_by_requests_waits_for_one(speaking: LiveServer):
    taken = [speaking.engine.open_speech("duplex") for _ in range(2)]
    with duplex(speaking) as client:
        client.say("start", **SPEAKS)
        assert client.next()["type"] == "queued"
        taken.pop().close()
        assert eventually(lambda: speaking.engine.num_speaking == 1)
        speaking.clock.advance(1)
        client.until("ready")
        assert client.second()["decision"] == "speak"
    taken.pop().close()


def test_text_is_enough_for_who_asks_for_no_sound(speaking: LiveServer):
    with duplex(speaking) as client:
        ready = client.start(**SPEAKS, audio={"in": 16_000, "out": None})
        assert (ready["audio"]["out"], ready["capabilities"]["speech"]) == (None, False)
        assert client.second()["decision"] == "speak"
        assert not sounds(client.events)
    with duplex(speaking) as client:
        client.say("start", voice="nobody")
        error = client.next()
        assert (error["code"], error["param"]) == ("invalid_request", "voice")
