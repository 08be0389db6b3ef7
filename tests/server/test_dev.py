"""/load, and the routes that only a server in development mode has."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from server.bodies import PNG_URL, chat, image_part
from server.live import Live, eventually, serve, user

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient


@pytest.fixture(scope="module")
def dev(engine: EngineClient) -> Iterator[Live]:
    with serve(engine, dev_mode=True, served_model_name="tiny") as server:
        yield server


def get(live: Live, path: str) -> tuple[int, object]:
    status, _, answer = live.request("GET", path)
    return status, json.loads(answer)


def test_load_counts_what_runs(live: Live):
    assert eventually(lambda: live.engine.num_requests == 0)
    assert get(live, "/load") == (200, {"server_load": 0})
    body = chat(messages=user("Tell me a story."), max_tokens=1500, ignore_eos=True, stream=True)
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=30)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    response.read(1)
    assert get(live, "/load") == (200, {"server_load": 1})
    response.close()
    connection.close()
    assert eventually(lambda: live.engine.num_requests == 0)


def test_developers_see_the_settings_without_the_keys(engine: EngineClient):
    with serve(engine, dev_mode=True, api_keys=("secret",)) as server:
        status, _, answer = server.request("GET", "/server_info", headers={"authorization": "Bearer secret"})
    assert status == 200
    assert b"secret" not in answer
    info = json.loads(answer)
    assert info["engine_config"]["max_model_len"] == 2048
    assert info["engine_config"]["limits"]["max_items"] == 8
    assert info["server_config"]["dev_mode"] is True


def test_sleep_is_refused_where_it_is_not_enabled(dev: Live):
    status, answer = dev.post(b"", "/sleep?level=1")
    assert (status, answer["error"]["code"]) == (400, "unsupported")
    assert "--enable-sleep-mode" in answer["error"]["message"]
    assert get(dev, "/is_sleeping") == (200, {"is_sleeping": False})
    assert dev.post(b"", "/wake_up") == (200, {"status": "awake"})


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="engine processes need socket pairs that can be inherited")
def test_a_server_that_sleeps_gives_its_device_back(any_model: Path):
    config = EngineConfig(
        model=str(any_model), max_model_len=1024, kv_cache_bytes=32 << 20, max_num_seqs=2, enable_sleep_mode=True
    )
    question = chat(messages=user("Say something."), max_tokens=4, temperature=0)
    with EngineClient(config, kind="process") as client, serve(client, dev_mode=True) as server:
        for wrong, named in (("level=0", "level"), ("level=x", "level"), ("mode=keep", "mode"), ("mode=x", "mode")):
            status, answer = server.post(b"", f"/sleep?{wrong}")
            assert (status, answer["error"]["param"]) == (400, named)
        status, before = server.post(question)
        assert status == 200
        pid = client.engine_pid
        assert server.post(b"", "/sleep?level=1&mode=wait") == (200, {"status": "sleeping", "level": 1})
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert get(server, "/is_sleeping") == (200, {"is_sleeping": True})
        assert get(server, "/health") == (200, {"status": "sleeping"})
        assert b'engine_sleep_state{engine="0",model_name=' in server.request("GET", "/metrics")[2]
        status, answer = server.post(question)
        assert status == 503
        assert "/wake_up" in answer["error"]["message"]
        assert server.post(b"", "/sleep?level=2")[0] == 200  # again changes nothing
        assert server.post(b"", "/wake_up?tags=nothing")[0] == 400
        assert server.post(b"", "/wake_up?tags=weights&tags=kv_cache") == (200, {"status": "awake"})
        status, after = server.post(question)
        assert (status, after["choices"]) == (200, before["choices"])
        assert client.stats().restarts == 0


def test_an_emptied_prefix_cache_finds_nothing(dev: Live):
    body = chat(messages=user("Say something. " * 20), max_tokens=1)
    cached = [dev.post(body)[1]["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
    assert cached[1] > 0
    assert dev.post(b"", "/reset_prefix_cache") == (200, {"success": True})
    assert dev.post(b"", "/reset_mm_cache") == (200, {"success": True})
    assert dev.post(body)[1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_emptied_media_caches_find_nothing(dev: Live):
    def hits() -> tuple[int, int]:
        return dev.engine.stats().encoder_cache_hits, dev.engine.media_stats().cache.hits

    def found() -> tuple[bool, bool]:
        """Whether the picture was in the encoder cache and in that of the processor."""
        assert dev.post(b"", "/reset_prefix_cache")[0] == 200
        before = hits()
        assert dev.post(chat(messages=user([image_part(PNG_URL), {"type": "text", "text": "?"}])))[0] == 200
        assert eventually(lambda: dev.engine.num_requests == 0)
        return tuple(now > then for now, then in zip(hits(), before, strict=True))  # type: ignore[return-value]

    found()
    assert found() == (True, True)
    assert dev.post(b"", "/reset_encoder_cache") == (200, {"success": True})
    assert found() == (False, True)
    assert dev.post(b"", "/reset_mm_cache") == (200, {"success": True})
    assert found() == (False, False)


@pytest.mark.parametrize("path", ["/server_info", "/is_sleeping", "/sleep", "/reset_prefix_cache"])
def test_other_servers_have_no_such_routes(live: Live, path: str):
    assert live.request("GET", path)[0] == 404
    assert live.request("POST", path)[0] == 404
