"""H-315 and H-319 to H-322 of the catalogue of hostile inputs: limits of readers, keys, contexts and clocks."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from live_sessions.crowd import emptied, flood
from live_sessions.doors import DEMO, DOORS, DUPLEX, LIVE, REALTIME, int16
from live_sessions.raw import TEXT, Raw, frame, raw
from live_sessions.test_socket_sessions import error, text_item
from live_sessions.tools import HEADER, LISTENS, LiveServer, duplex, noise, serve_live
from server.live import eventually

from sensorium.engine.client import EngineClient

# ---- H-315: clients that do not read --------------------------------------------------------------------------------


def test_h315_a_realtime_client_that_reads_nothing(alone: LiveServer):
    """It is told of an item of 1 MB until nothing more fits on its way; 30 s later it is hung up on."""
    with raw(alone.port, REALTIME.path, receive_bytes=4096) as slow, raw(alone.port, REALTIME.path) as good:
        REALTIME.open(slow)
        REALTIME.open(good)
        slow.say(text_item("x" * 1_000_000))
        for _ in range(100):
            alone.clock.advance(1)
            REALTIME.check(good)
        assert slow.closed() == (1008, "slow_consumer")
        REALTIME.check(good)


@pytest.mark.parametrize("limit", [pytest.param("30 s", marks=pytest.mark.slow), "1 MiB"])
def test_h315_a_live_client_that_reads_nothing(alone: LiveServer, limit: str):
    with duplex(alone) as good, raw(alone.port, DUPLEX.path, receive_bytes=4096) as slow:
        good.start(**LISTENS)
        DUPLEX.open(slow)
        ping = frame(TEXT, json.dumps({"type": "ping", "t": "\x01" * 64}).encode())
        flood(slow, ping * (2000 if limit == "30 s" else 6000))

        def is_dropped() -> bool:
            if limit == "30 s":
                alone.clock.advance(1)
                good.second()
            return alone.service.num_sockets == 1

        assert eventually(is_dropped)
        assert slow.closed() == (1008, "slow_consumer")
        assert good.second()["behind_ms"] == 0
        good.say("stop")
        good.until("bye")


def test_h315_a_client_that_reads_late_misses_nothing(alone: LiveServer):
    """More messages wait than are kept for one that comes back, but less than makes a client a slow one."""
    with raw(alone.port, DUPLEX.path, receive_bytes=4096) as late, raw(alone.port, DUPLEX.path) as good:
        DUPLEX.open(late)
        DUPLEX.open(good)
        for n in range(1400):
            late.say({"type": "ping", "t": "\x01" * 56 + str(n)})
        for _ in range(300):  # meanwhile all of these are answered, as far as nobody reads
            DUPLEX.check(good)
        assert [late.next()["t"][56:] for _ in range(1400)] == [str(n) for n in range(1400)]


# ---- coming back, caps, clocks --------------------------------------------------------------------------------------


def test_h319_a_token_has_one_winner(alone: LiveServer):
    with raw(alone.port, DUPLEX.path) as first:
        ready = DUPLEX.open(first)
        resume = {"type": "resume", "session": ready["session"], "resume_token": ready["resume_token"]}
        for wrong in (
            {"resume_token": "x"},
            {"session": "live_x"},
            {"resume_token": ""},
            {"resume_token": "\ud83d\ude00"},
        ):
            with raw(alone.port, DUPLEX.path) as thief:
                assert error(thief, {**resume, **wrong})["code"] == "session_not_found"
                assert thief.closed() == (1008, "session_not_found")
        DUPLEX.check(first)
        racers = [Raw(alone.port, DUPLEX.path) for _ in range(4)]
        barrier = threading.Barrier(4)
        outcomes: list[str] = []

        def race(peer: Raw) -> None:
            barrier.wait()
            peer.say(resume)
            outcomes.append(peer.next()["type"])

        threads = [threading.Thread(target=race, args=(peer,)) for peer in racers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["error", "error", "error", "ready"]
        assert first.until("bye")["reason"] == "replaced"
        for peer in racers:
            peer.vanish()
        assert emptied(alone)
    with raw(alone.port, DUPLEX.path) as late:
        assert error(late, resume)["code"] == "session_not_found", "it is over"


def test_h320_each_key_has_its_share(engine: EngineClient):
    header = [f"Authorization: Bearer {key}" for key in ("key-of-a", "key-of-b")]
    with serve_live(
        engine, served_model_name="tiny", api_keys=("key-of-a", "key-of-b"), max_sessions_per_key=2
    ) as server:
        with raw(server.port, REALTIME.path, [header[0]]) as one, raw(server.port, DUPLEX.path, [header[0]]) as two:
            REALTIME.open(one)
            DUPLEX.open(two)
            for door in DOORS:
                with raw(server.port, door.path, [header[0]]) as late:
                    if door is REALTIME:
                        told = late.next()["error"]
                        assert (told["code"], told["type"]) == ("session_limit_reached", "rate_limit_error")
                    else:
                        for kind in door.greeting:
                            assert late.next()["type"] == kind
                        told = error(late, door.begin)
                        assert door is DEMO or told["code"] == "session_limit_reached"
                        assert door is not DUPLEX or told["retry_after_s"] == 5
                    assert "try again in 5 s" in json.dumps(told)
                    assert late.closed() == (1013, "session_limit_reached; try again in 5 s")
            with raw(server.port, LIVE.path, [header[1]]) as other:
                LIVE.open(other)
            two.say({"type": "stop"})
            assert two.until("bye")
            two.closed()
            assert eventually(lambda: server.service.num_sessions == 0)
            with raw(server.port, DUPLEX.path, [header[0]]) as again:
                DUPLEX.open(again)
                again.say({"type": "stop"})
                again.until("bye")
        assert eventually(lambda: not server.service.seats._sessions)


def test_h320_one_more_than_all(engine: EngineClient):
    with serve_live(engine, served_model_name="tiny", max_realtime_sessions=1, max_live_queue=0) as server:
        with raw(server.port, REALTIME.path) as first, raw(server.port, REALTIME.path) as late:
            REALTIME.open(first)
            assert late.next()["error"]["code"] == "session_limit_reached"
            assert late.closed() == (1013, "session_limit_reached; try again in 10 s")
        holders: list[Raw] = []
        for _ in range(4):
            holders.append(Raw(server.port, DUPLEX.path))
            DUPLEX.open(holders[-1])
        with raw(server.port, DUPLEX.path) as late:
            told = error(late, DUPLEX.begin)
            assert (told["code"], told["fatal"]) == ("queue_full", True)
            assert told["retry_after_s"] >= 1
            code, reason = late.closed()
            assert code == 1013
            assert reason.startswith("queue_full; try again in ")
        for peer in holders:
            peer.say({"type": "stop"})
            peer.until("bye")
            peer.socket.close()


@pytest.mark.parametrize("window", ["off", "slide"])
def test_h321_a_full_context_ends_or_slides(engine: EngineClient, window: str):
    with (
        serve_live(engine, served_model_name="tiny", live_max_len=512) as server,
        raw(server.port, DUPLEX.path) as peer,
    ):
        ready = DUPLEX.open(peer, window={"policy": window})
        told: list[dict[str, Any]] = []
        for n in range(40):
            server.clock.advance(1)
            peer.say(HEADER.pack(1, 0, 0, n, 16_000 * n) + int16(noise(n)))
            while not told or told[-1]["type"] not in ("unit", "bye"):
                told.append(peer.next())
            if told[-1]["type"] == "bye":
                break
            assert told[-1]["kv"]["used"] <= ready["limits"]["max_len"] == 512
            told.append({"type": "asked"})
        units = [event["n"] for event in told if event["type"] == "unit"]
        if window == "off":
            assert told[-1]["reason"] == "context_full"
            assert peer.closed()[0] == 1000
            assert 5 < len(units) < 40
        else:
            assert units == list(range(40))
            assert not [event for event in told if event["type"] == "error"]
            peer.say({"type": "stop"})
            assert peer.until("bye")["usage"]["units"] == 40


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_h322_the_time_of_day_may_jump(alone: LiveServer, step: float, monkeypatch: pytest.MonkeyPatch):
    peers = [Raw(alone.port, door.path) for door in DOORS]
    for peer, door in zip(peers, DOORS, strict=True):
        door.open(peer)
    before, clock = time.time, time.monotonic()
    monkeypatch.setattr(time, "time", lambda: before() + step)
    for peer, door in zip(peers, DOORS, strict=True):
        peer.say(door.sound(noise(0)))
        door.check(peer)
    monkeypatch.undo()
    for peer, door in zip(peers, DOORS, strict=True):
        door.check(peer)
        peer.vanish()
    assert time.monotonic() > clock
