"""F-069 to F-076 of the fault catalogue: sessions under bad networks, restarts, stalls and crowds of bad clients."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from live_sessions.crowd import Crowd, emptied, flood
from live_sessions.doors import DEMO, DOORS, DUPLEX, LIVE, REALTIME, int16
from live_sessions.proxy import Proxy
from live_sessions.raw import TEXT, Raw, announced, descriptors, frame, raw
from live_sessions.test_live_hostile import check
from live_sessions.test_socket_sessions import endless, said, text_item
from live_sessions.tools import HEADER, LISTENS, SPEAKS, Client, LiveServer, duplex, jpeg, noise, serve_live
from server.live import eventually

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.engine.link import Supervision
from sensorium.server import socket_protocol
from sensorium.server.live.clock import MonotonicClock


def loop_of(server: LiveServer) -> asyncio.AbstractEventLoop:
    """The server's event loop, while it has a session."""
    return server.service._ticking.get_loop()


# ---- F-069: long sessions -------------------------------------------------------------------------------------------


def long_session(server: LiveServer, seconds: int) -> list[dict[str, Any]]:
    """The units of one."""
    units: list[dict[str, Any]] = []
    with duplex(server) as client:
        client.start(**SPEAKS)
        for n in range(seconds):
            server.clock.advance(1)
            units.append(client.long_second(n))
            if n % 100 == 99:
                del client.events[:-10]
        client.say("stop")
        assert client.until("bye")["usage"]["units"] == seconds
    return units


@pytest.mark.parametrize("seconds", [40, pytest.param(3600, marks=pytest.mark.slow)])
def test_f069_a_long_session_rolls_over(engine: EngineClient, seconds: int):
    """tests/soak/sessions.py holds one for six hours and watches its memory."""
    with serve_live(engine, live_max_len=512, live_max_s=1e6) as server:
        units = long_session(server, seconds)
    assert [unit["n"] for unit in units] == list(range(seconds))
    assert max(unit["kv"]["used"] for unit in units) <= 512
    assert any(later["kv"]["used"] < unit["kv"]["used"] for unit, later in itertools.pairwise(units))
    assert not any(unit["behind_ms"] for unit in units)


# ---- F-070: the engine starts again ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def apart(engine: EngineClient) -> Iterator[EngineClient]:
    """The same model in a process that may be killed."""
    config = EngineConfig(
        model=engine.config.model, max_model_len=1024, max_num_seqs=16, kv_cache_bytes=64 << 20, max_sessions=16
    )
    rules = Supervision(first_delay_s=0.1, longest_delay_s=0.1)
    with EngineClient(config, kind="process", supervision=rules) as client:
        yield client


@pytest.mark.slow
def test_f070_sixteen_sessions_go_on_in_another_engine(apart: EngineClient):
    with serve_live(apart, clock=MonotonicClock(), live_max_len=512, served_model_name="tiny") as server:
        opened = [duplex(server) for _ in range(16)]
        clients: list[Client] = [one.__enter__() for one in opened]
        for n, client in enumerate(clients):
            client.start(**SPEAKS)
            client.sound(noise(n))
        assert all(client.until("unit")["decision"] == "speak" for client in clients)
        before = [max(event["id"] for event in client.events if event["type"] == "turn") for client in clients]
        clients[0].say("pause")
        clients[0].until("notice", code="paused")
        apart.kill()
        lost_s = time.monotonic()
        for client in clients:
            client.until("notice", code="engine_restarted")
        for n, client in enumerate(clients[1:], 1):
            client.sound(noise(n))
            assert client.until("unit")["n"] == 1
        took_s = time.monotonic() - lost_s
        clients[0].say("resume")
        clients[0].sound(noise(99))
        assert clients[0].until("unit")["n"] == 1
        for client, last in zip(clients, before, strict=True):
            place = next(n for n, event in enumerate(client.events) if event.get("code") == "engine_restarted")
            after = client.events[place:]
            assert all(event["turn"] > last for event in after if event["type"] == "text")
            assert any(event.get("decision") == "speak" for event in after)
            client.say("stop")
            client.until("bye")
            check(client.events)
        for one in opened:
            one.__exit__(None, None, None)
        metrics = server.request("GET", "/metrics")[2].decode()
        assert "sensorium:live_sessions_restarted_total" in metrics
        print(f"sixteen sessions speak again after {took_s:.1f} s")


@pytest.mark.slow
@pytest.mark.parametrize("door", [LIVE, DEMO, REALTIME], ids=["live", "demo", "realtime"])
def test_f070_every_door_tells_of_it(apart: EngineClient, door: Any):
    assert eventually(lambda: apart.is_alive)
    with serve_live(apart, clock=MonotonicClock(), live_max_len=512, served_model_name="tiny") as server:
        with raw(server.port, door.path) as peer:
            door.open(peer)
            if door is REALTIME:
                said(peer, "Go on.")
                peer.say(endless())
                peer.until("response.output_text.delta")
            apart.kill()
            if door is REALTIME:
                response = peer.until("response.done")["response"]
                assert response["status"] == "failed"
                assert response["status_details"]["error"]["code"] == "engine_restarted"
                assert eventually(lambda: apart.is_alive)
                peer.say(endless(2))
                assert peer.until("response.done")["response"]["status"] != "failed", "what was said is still there"
                return
            while (event := peer.next()).get("code") != "engine_restarted" and event["type"] != "engine_restarted":
                assert event["type"] in ("info", "session.usage.updated"), event
            peer.say(door.sound(noise(0)))
            door.check(peer)
        assert eventually(lambda: not server.service.num_sessions)


@pytest.mark.slow
@pytest.mark.parametrize("door", [LIVE, DUPLEX, DEMO], ids=["live", "duplex", "demo"])
def test_f070_or_closes_by_option(apart: EngineClient, door: Any):
    assert eventually(lambda: apart.is_alive)
    with serve_live(apart, live_restart="close", live_max_len=512, served_model_name="tiny") as server:
        with raw(server.port, door.path) as peer:
            door.open(peer)
            apart.kill()
            assert peer.closed()[0] == 1012
        assert eventually(lambda: not server.service.num_sessions)
    assert eventually(lambda: apart.is_alive)


# ---- F-071: many, and some of them bad ------------------------------------------------------------------------------


@pytest.mark.slow
def test_f071_eight_of_sixty_four_misbehave(engine: EngineClient):
    config = EngineConfig(
        model=engine.config.model, max_model_len=1024, max_num_seqs=64, kv_cache_bytes=256 << 20, max_sessions=64
    )
    with EngineClient(config) as own, serve_live(own, live_max_len=512, max_live_queue=16) as server:
        opened = [duplex(server) for _ in range(56)]
        good = [one.__enter__() for one in opened]
        for client in good:
            client.start(**SPEAKS)
        bad = [Raw(server.port, DUPLEX.path, receive_bytes=4096) for _ in range(8)]
        for peer in bad:
            DUPLEX.open(peer)
        ping = frame(TEXT, b'{"type": "ping", "t": "%s"}' % (b"x" * 60))
        misdeeds = [
            frame(TEXT, b'{"type": "dance"}') * 100,
            ping * 3000,
            frame(9) * 5000,
            announced(1 << 40),
            frame(TEXT, b"{", fin=False) + frame(0, b"", fin=False) * 20_000,
            frame(2, HEADER.pack(2, 0, 0, 0, 0) + jpeg(0)) * 200,
            frame(2, HEADER.pack(1, 0, 0, 0, 0) + int16(noise(0, 160_000))) * 10,
            b"\x00" * 1000,
        ]
        for n in range(6):
            server.clock.advance(1)
            if n == 2:
                for peer, data in zip(bad, misdeeds, strict=True):
                    flood(peer, data)
            for client in good:
                client.sound(noise(n))
            for client in good:
                unit = client.until("unit")
                assert (unit["n"], unit["behind_ms"]) == (n, 0)
        for peer in bad:
            peer.vanish()
        for client, one in zip(good, opened, strict=True):
            client.say("stop")
            client.until("bye")
            assert not [event for event in client.events if event["type"] in ("notice", "error")]
            check(client.events)
            one.__exit__(None, None, None)
        assert emptied(server)


# ---- F-072: bad networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 12))])
def test_f072_jitter_stalls_and_an_outage_lose_nothing(alone: LiveServer, seed: int):
    """Stalls of up to half a second's worth of sound and more, both ways; an outage of three seconds; resumed."""
    rng = random.Random(seed)
    proxy = Proxy(alone.port, seed)
    told: list[dict[str, Any]] = []
    position, seq = 0, 0
    token: dict[str, Any] = {}
    try:
        for outage in range(3):
            with duplex(SimpleNamespace(port=proxy.port)) as client:  # type: ignore[arg-type]
                if outage:
                    client.say("resume", **token, seq=seq)
                    taken = client.until("ready")
                    assert (taken["resumed"], taken["in_samples"]) == (True, position), "all that arrived is heard"
                else:
                    taken = client.start(**SPEAKS)
                token = {"session": taken["session"], "resume_token": taken["resume_token"]}
                client.position = position
                for n in range(4):
                    way = rng.choice(["up", "down", "none"])
                    if way != "none":
                        proxy.hold(way)
                    for _ in range(4):
                        client.sound(noise(n, 4000))
                        alone.clock.advance(rng.choice([0.0, 0.25, 0.5]))
                    if way != "none":
                        proxy.release(way)
                    client.until("unit")
                position = client.position
                told += [event for event in client.events if "seq" in event and event["type"] != "ready"]
                seq = told[-1]["seq"] + 1
                proxy.cut()
            alone.clock.advance(3)
            proxy.mend()
        assert [event["seq"] for event in told] == list(range(len(told))), "nothing is missing, nothing comes twice"
        units = [event for event in told if event["type"] == "unit"]
        assert [unit["n"] for unit in units] == list(range(12))
        assert [unit["in_samples"] for unit in units] == [16_000 * n for n in range(1, 13)]
        assert not [event for event in told if event["type"] in ("error", "notice")]
    finally:
        proxy.close()


# ---- F-073: an event loop that stalls -------------------------------------------------------------------------------


def test_f073_pings_survive_a_loop_that_stalls(alone: LiveServer):
    alone.server.config.ws_ping_interval = 0.05
    with duplex(alone) as client, raw(alone.port, REALTIME.path) as realtime:
        client.start(**LISTENS)
        REALTIME.open(realtime)
        for n in range(5):
            loop_of(alone).call_soon_threadsafe(time.sleep, 0.2)
            alone.clock.advance(1)
            assert client.second(n)["n"] == n
            REALTIME.check(realtime)
        assert client.socket.close_code is None


# ---- F-074: sound that is on its way --------------------------------------------------------------------------------


def test_f074_no_sound_behind_the_acknowledgement(speaking: LiveServer):
    """All of it lies unread in the socket while the turn is cancelled; the client can tell old from new."""
    with raw(speaking.port, DUPLEX.path) as peer:
        DUPLEX.open(peer, **SPEAKS)
        told: list[dict[str, Any]] = []
        for n in range(6):
            peer.say(HEADER.pack(1, 0, 0, n, 16_000 * n) + int16(noise(n)))
            if n % 2:
                peer.say({"type": "interrupt"})
            speaking.clock.advance(1)
            while not told or told[-1].get("n") != n or told[-1]["type"] != "unit":
                told.append(peer.next())
        peer.say({"type": "stop"})
        while told[-1]["type"] != "bye":
            told.append(peer.next())
    cancelled = 0
    is_open = False
    jumped = True
    for event in told:
        if event["type"] == "turn":
            is_open = event["event"] == "start"
            if event["event"] == "cancelled":
                cancelled, jumped = cancelled + 1, False
        elif event["type"] == "sound":
            assert is_open, "a stale frame"
            flags = event["data"][1]
            assert jumped or flags & 1, "the first frame behind a cancelled turn says so"
            jumped = True
    assert cancelled


# ---- F-075: opening and closing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [6, pytest.param(500, marks=pytest.mark.slow)])
def test_f075_opening_and_closing_leaves_nothing(beside: Crowd, times: int):
    """tests/soak/sessions.py does so 100,000 times and watches the memory."""

    def rounds(count: int) -> None:
        for n in range(count):
            for door in DOORS:
                peer = Raw(beside.server.port, door.path)
                door.open(peer)
                if n % 3 == 0:
                    peer.vanish()
                else:
                    if door is DUPLEX:
                        peer.say({"type": "stop"})
                    peer.send(frame(8))
                    peer.closed()
                    peer.socket.close()
            if n % 3 == 2:
                beside.unharmed()

    rounds(3)
    loop = loop_of(beside.server)
    files, tasks = descriptors(), len(asyncio.all_tasks(loop))
    rounds(times // 3 * 3)
    assert eventually(lambda: (descriptors(), len(asyncio.all_tasks(loop))) == (files, tasks))


# ---- F-076: a peer that takes nothing at the end --------------------------------------------------------------------


def test_f076_who_takes_nothing_at_the_end_is_cut_off(alone: LiveServer, monkeypatch: pytest.MonkeyPatch):
    assert socket_protocol.LINGER_S == 10
    monkeypatch.setattr(socket_protocol, "LINGER_S", 0.05)
    with raw(alone.port, REALTIME.path, receive_bytes=4096) as slow, raw(alone.port, REALTIME.path) as good:
        REALTIME.open(slow)
        REALTIME.open(good)
        slow.say(text_item("x" * 1_000_000))
        connections = alone.server.server_state.connections
        for _ in range(100):
            alone.clock.advance(1)
            REALTIME.check(good)
        assert eventually(lambda: len(connections) == 1), "its socket is freed although it reads nothing"
        REALTIME.check(good)
