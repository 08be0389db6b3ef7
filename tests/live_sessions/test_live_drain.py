"""What a server that is asked to stop does with its live sessions, and what /metrics tells of them."""

from __future__ import annotations

import signal

from live_sessions.tools import LISTENS, SPEAKS, LiveServer, duplex, serve_live

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.server.run import CUT


def stop(server: LiveServer) -> None:
    server.server.handle_exit(signal.SIGTERM, None)


def small(engine: EngineClient) -> EngineClient:
    return EngineClient(
        EngineConfig(model=engine.config.model, max_model_len=1024, kv_cache_bytes=64 << 20, max_sessions=2)
    )


def test_a_server_that_ends_tells_its_sessions(engine: EngineClient):
    """Those that listen and those that wait at once, one that speaks when it has finished."""
    with small(engine) as own, serve_live(own) as server:
        with duplex(server) as speaking, duplex(server) as listening, duplex(server) as waiting:
            speaking.start(**SPEAKS)
            assert speaking.second()["decision"] == "speak"
            listening.start(**LISTENS)
            waiting.say("start")
            assert waiting.next()["type"] == "queued"
            stop(server)
            for client in (listening, waiting):
                assert client.until("bye")["reason"] == "shutting_down"
                assert client.closed() == 1001
            assert speaking.second()["turn"] == 1, "it may finish"
            speaking.say("interrupt")
            assert speaking.until_bye()["reason"] == "shutting_down"
            assert speaking.closed() == 1001
        server.thread.join()
        assert server.server.num_cut == 0


def test_a_session_that_never_ends_is_cut_off(engine: EngineClient):
    with small(engine) as own, serve_live(own, drain_s=0.2) as server:
        with duplex(server) as client:
            client.start(**SPEAKS)
            client.second()
            stop(server)
            assert client.until_bye()["reason"] == "shutting_down"
            assert client.closed() == 1001
        server.thread.join()
        assert server.server.num_cut == 1
    assert CUT


def test_a_dead_engine_ends_its_sessions(engine: EngineClient):
    with small(engine) as own, serve_live(own) as server, duplex(server) as client:
        client.start(**LISTENS)
        own.close()
        assert client.until_error()["code"] == "engine_dead"
        assert client.until("bye")["reason"] == "engine_restarted"
        assert client.closed() == 1012


def test_metrics_tell_of_units_and_sessions(live: LiveServer):
    def value(name: str) -> float:
        text = live.request("GET", "/metrics")[2].decode()
        lines = [line for line in text.splitlines() if line.startswith(f"sensorium:{name}")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    units, late, barge = (
        value("realtime_units_total"),
        value("realtime_units_late_total"),
        value("realtime_barge_in_seconds_count"),
    )
    with duplex(live) as client:
        client.start(**SPEAKS)
        assert value("live_sessions{") == 1
        client.second()
        client.say("interrupt")
        client.until("turn", event="cancelled")
        client.second()
        client.say("stop")
        client.until("bye")
    assert value("realtime_units_total") == units + 2
    assert value("realtime_units_late_total") == late
    assert value("realtime_unit_seconds_count") >= 2
    assert value("realtime_barge_in_seconds_count") == barge + 1
    assert value("live_sessions_ended_total") >= 1
