"""/v1/duplex on real sockets: every flow of docs/duplex-protocol.md, with a clock that stands still."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise

import pytest
from live_sessions.tools import LISTENS, SPEAKS, LiveServer, duplex, jpeg, noise


def test_a_session_from_its_start_to_its_end(live: LiveServer):
    with duplex(live) as client:
        ready = client.start(**SPEAKS | {"force_listen_units": 2}, instructions="Talk.")
        assert client.socket.subprotocol == "sensorium.duplex.v1"
        assert ready["model"] == "tiny"
        assert ready["audio"] == {"in": 16000, "out": None}, "this model does not speak"
        assert ready["capabilities"]["speech"] is False
        assert ready["limits"]["max_len"] == 1024
        units = [client.second(seed) for seed in range(4)]
        client.say("played", samples=7)
        client.say("ping", t=5)
        assert client.until("pong")["t"] == 5
        client.say("stop")
        bye = client.until("bye")
        assert client.closed() == 1000
    assert [unit["decision"] for unit in units] == ["listen", "listen", "speak", "speak"]
    assert [unit["n"] for unit in units] == [0, 1, 2, 3]
    assert [unit["in_samples"] for unit in units] == [16000, 32000, 48000, 64000]
    assert [unit["turn"] for unit in units] == [None, None, 1, 1]
    assert all(unit["kv"]["used"] < unit["kv"]["limit"] == 1024 for unit in units)
    assert all(unit["ms"]["speech"] is None and unit["ms"]["prefill"] > 0 for unit in units)
    assert bye["reason"] == "stopped"
    assert bye["usage"] == {
        "seconds": 0.0, "units": 4, "units_late": 0, "spoken_units": 2,
        "in_samples": 64000, "out_samples": 0, "played_samples": 7,
    }  # fmt: skip
    assert client.kinds() == [
        "ready",
        "unit listen",
        "turn start",
        "text",
        "unit speak",
        "text",
        "unit speak",
        "pong",
        "bye",
    ]
    said = "".join(event["delta"] for event in client.events if event["type"] == "text")
    assert said == units[2]["text"] + units[3]["text"]
    numbers = [event["seq"] for event in client.events if event["type"] not in ("ready", "pong")]
    assert numbers == list(range(len(numbers)))


def test_sound_of_any_size_and_rate_is_cut_by_its_samples(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS, audio={"in": 48000, "out": None})
        for size in (1, 47_999, 24_000, 24_001, 60_000):
            client.sound(noise(size, size))
        ends = [client.until("unit")["in_samples"] for _ in range(3)]
    # Resampling holds a little back, so the third second ends where the fourth has begun.
    assert ends == [48_000, 96_000, 144_000]


def test_high_refresh_shows_five_frames_as_two_pictures(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS, video={"max_fps": 5, "stack": True})
        used = [client.second()["kv"]["used"], client.second()["kv"]["used"]]
        for count in (1, 2, 5):
            for seed in range(count):
                client.picture(
                    jpeg(seed, size=(64 + 8 * seed, 48), kind="JPEG" if seed else "PNG"), kind=2 if seed else 5
                )
            used.append(client.second()["kv"]["used"])
        client.say("update", video={"stack": False})
        assert client.until_error()["param"] == "video.stack"
    plain, *shown = [after - before for before, after in pairwise(used)]
    assert [rows - plain for rows in shown] == [66, 2 * 66, 2 * 66]


def test_pictures_and_typed_words_are_rows_of_their_unit(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS, video={"max_fps": 2})
        used = [client.second()["kv"]["used"]]
        for kind, name in ((2, "JPEG"), (3, "WEBP"), (5, "PNG")):
            client.picture(jpeg(kind, kind=name), kind=kind)
        used.append(client.second()["kv"]["used"])
        client.say("text", text="What do you see?")
        used.append(client.second()["kv"]["used"])
        used.append(client.second()["kv"]["used"])
        client.say("update", video={"max_fps": 1})
        for seed in range(3):
            client.picture(jpeg(seed))
        used.append(client.second()["kv"]["used"])
    rows = [after - before for before, after in pairwise(used)]
    plain = rows[2]
    assert rows[0] == plain + 2 * 66, "the two newest of three"
    assert rows[1] > plain
    assert rows[3] == plain + 66


def test_what_is_no_picture_is_told_and_the_unit_goes_on(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS)
        client.picture(b"not a picture")
        client.sound(noise())
        error = client.next()
        assert (error["type"], error["code"], error["fatal"]) == ("error", "invalid_media", False)
        assert client.until("unit")["n"] == 0


def test_an_interruption_ends_the_turn_at_once(live: LiveServer):
    with duplex(live) as client:
        client.start(**SPEAKS)
        assert client.second(1)["turn"] == 1
        client.say("interrupt")
        assert client.until("turn")["event"] == "cancelled"
        first = client.second(2)
        assert first["decision"] == "listen", "the turn is closed with the next unit"
        assert client.second(3)["turn"] == 2
        client.say("interrupt")
        client.say("interrupt")
        assert client.until("turn")["id"] == 2
        assert client.second(4)["decision"] == "listen"
    turns = [(event["event"], event["id"]) for event in client.events if event["type"] == "turn"]
    assert turns == [("start", 1), ("cancelled", 1), ("start", 2), ("cancelled", 2)]


def test_force_listen_on_sound_ends_the_turn_with_its_unit(live: LiveServer):
    with duplex(live) as client:
        client.start(**SPEAKS)
        client.second(1)
        client.sound(noise(2), flags=4)
        assert client.until("turn")["event"] == "cancelled"
        assert client.until("unit")["decision"] == "listen"


def test_pause_takes_nothing_and_ends_after_its_time(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS)
        client.say("pause")
        client.until("notice", code="paused")
        client.sound(noise())
        assert client.next()["code"] == "paused"
        client.position = 0
        live.clock.advance(59)
        client.say("resume")
        client.until("notice", code="resumed")
        assert client.second()["n"] == 0
        client.say("pause")
        client.until("notice", code="paused")
        live.clock.advance(60)
        assert client.until("bye")["reason"] == "paused"


def test_muted_sound_is_silence(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS)
        client.say("mute")
        client.until("notice", code="muted")
        assert client.second()["n"] == 0
        client.say("mute", on=False)
        client.until("notice", code="unmuted")


def test_gaps_are_filled_and_what_was_had_is_dropped(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS)
        client.sound(noise(1, 8000), position=0)
        client.sound(noise(2, 4000), position=12_000)
        assert client.until("notice", code="gap")["ms"] == 250
        assert client.until("unit")["in_samples"] == 16_000
        client.sound(noise(3, 16_000), position=8000)
        client.sound(noise(4, 8000), position=1_000_000, flags=1)
        assert client.until("unit")["in_samples"] == 1_000_000 + 8000 - 0


@pytest.mark.parametrize("seconds", [200, pytest.param(600, marks=pytest.mark.slow)])
def test_minutes_without_drift(live: LiveServer, seconds: int):
    """Longer than the context lasts: what was said first is forgotten meanwhile."""
    with duplex(live) as client:
        client.start(**LISTENS | {"force_listen_units": seconds})
        for n in range(seconds):
            live.clock.advance(1)
            unit = client.second(n % 7)
            assert (unit["n"], unit["in_samples"], unit["behind_ms"]) == (n, 16_000 * (n + 1), 0)
            assert unit["kv"]["used"] <= 1024
            client.events.clear()


def test_sessions_end_when_nothing_is_heard(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS)
        live.clock.advance(59)
        client.second()
        live.clock.advance(59)
        client.say("ping")
        client.until("pong")
        live.clock.advance(1)
        assert client.until("bye")["reason"] == "idle"
        assert client.closed() == 1000


def test_sessions_end_when_their_time_is_over(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS)
        for _ in range(61):
            live.clock.advance(58.9)
            client.second()
        live.clock.advance(10)
        bye = client.until("bye")
        assert bye["reason"] == "expired"
        assert bye["usage"]["seconds"] > 3600


def test_a_full_context_ends_the_session_where_nothing_may_be_forgotten(live: LiveServer):
    with duplex(live) as client:
        client.start(**LISTENS | {"force_listen_units": 100}, window={"policy": "off"}, instructions="word " * 70)
        for n in range(100):
            client.sound(noise(n))
            while (event := client.next())["type"] not in ("unit", "bye"):
                assert event["code"] == "context_length_exceeded"
            if event["type"] == "bye":
                break
        assert event["reason"] == "context_full"


# ---- places -------------------------------------------------------------------------------------------------------


def test_who_finds_no_place_waits_and_is_told_how_long(live: LiveServer):
    with (
        duplex(live) as a,
        duplex(live) as b,
        duplex(live) as c,
        duplex(live) as d,
        duplex(live) as e,
        duplex(live) as f,
    ):
        for client in (a, b, c, d):
            client.start(**LISTENS)
        e.say("start", **LISTENS)
        first = e.next()
        assert (first["type"], first["position"]) == ("queued", 1)
        eta = first["eta_s"]
        assert eta > 10
        f.say("start", **LISTENS)
        assert f.next() == {"type": "queued", "position": 2, "eta_s": eta}, "all four began at one time"
        f.sound(noise())
        assert f.until_error()["code"] == "invalid_request", "nothing is heard yet"
        f.say("ping")
        f.until("pong")
        live.clock.advance(3)
        assert f.until("queued")["eta_s"] == pytest.approx(eta - 3, abs=0.2)
        a.say("stop")
        assert e.until("ready")["type"] == "ready"
        assert f.until("queued", position=1)
        e.socket.close()
        b.say("stop")
        assert f.until("ready")
        assert f.second()["n"] == 0


def test_a_full_queue_refuses(live: LiveServer):
    with ExitStack() as stack:
        clients = [stack.enter_context(duplex(live)) for _ in range(9)]
        for client in clients[:4]:
            client.start(**LISTENS)
        for client in clients[4:8]:
            client.say("start")
            assert client.next()["type"] == "queued"
        refused = clients[8]
        refused.say("start")
        error = refused.next()
        assert (error["code"], error["fatal"]) == ("queue_full", True)
        assert error["retry_after_s"] > 1
        assert refused.closed() == 1013
