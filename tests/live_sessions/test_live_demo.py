"""The published demo's sequence of messages against /ws/duplex/{id}."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from live_sessions.tools import LiveServer, jpeg, noise
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

FIELDS = {
    "type", "is_listen", "text", "audio_data", "end_of_turn", "current_time", "cost_llm_ms", "cost_tts_prep_ms",
    "cost_tts_ms", "cost_token2wav_ms", "cost_all_ms", "n_tokens", "n_tts_tokens", "server_send_ts", "wall_clock_ms",
    "kv_cache_length",
}  # fmt: skip


class Client:
    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def next(self) -> dict[str, Any]:
        return json.loads(self.socket.recv(timeout=120))

    def second(self, seed: int = 0, **fields: Any) -> dict[str, Any]:
        self.say("audio_chunk", audio_base64=floats(noise(seed)), **fields)
        return self.next()


def floats(pcm: np.ndarray) -> str:
    return base64.b64encode((pcm / 32768).astype("<f4").tobytes()).decode()


@contextmanager
def talk(live: LiveServer) -> Iterator[Client]:
    with connect(f"ws://127.0.0.1:{live.port}/ws/duplex/adx_1", max_size=None) as socket:
        client = Client(socket)
        assert client.next() == {"type": "queue_done"}
        yield client


def test_the_demos_sequence(live: LiveServer):
    with talk(live) as client:
        client.say(
            "prepare", system_prompt="Talk.", config={"force_listen_count": 9}, ref_audio_base64=floats(noise(9))
        )
        assert client.next() == {"type": "prepared", "prompt_length": 5}
        for n in range(3):
            frame = base64.b64encode(jpeg(n)).decode()
            result = client.second(n, frame_base64_list=[frame], force_listen=n == 1, max_slice_nums=1)
            assert set(result) == FIELDS
            assert (result["is_listen"], result["text"], result["current_time"]) == (True, "", n + 1)
            assert base64.b64decode(result["audio_data"]) == bytes(4 * 24_000)
        client.say("client_diagnostic", anything=1)
        client.say("pause", timeout=20)
        assert client.next() == {"type": "paused", "timeout": 20}
        assert client.second()["type"] == "error"
        client.say("resume")
        assert client.next() == {"type": "resumed"}
        client.say("interrupt")
        assert client.next() == {"type": "interrupted"}
        client.say("stop")
        assert client.next() == {"type": "stopped"}
        with pytest.raises(ConnectionClosed):
            client.next()


def test_a_pause_runs_out(live: LiveServer):
    with talk(live) as client:
        client.say("prepare")
        assert client.next()["type"] == "prepared"
        client.say("pause", timeout=5)
        assert client.next()["type"] == "paused"
        live.clock.advance(5)
        assert client.next() == {"type": "timeout", "reason": "paused"}


def test_what_is_said_comes_with_its_second(speaking: LiveServer):
    """Nothing here is seeded: at some second of many, something is said."""
    with talk(speaking) as client:
        client.say("prepare", config={"force_listen_count": 0, "temperature": 5.0, "top_k": 0, "top_p": 1.0})
        assert client.next()["type"] == "prepared"
        for n in range(50):
            result = client.second(n)
            wave = np.frombuffer(base64.b64decode(result["audio_data"]), "<f4")
            assert result["n_tts_tokens"] == (0 if result["is_listen"] else len(wave) // 960)
            if wave.any():
                break
        assert wave.any()


@pytest.mark.parametrize(
    "prepare",
    [
        {"ref_audio_path": "/etc/passwd"},
        {"tts_ref_audio_base64": "AAAA"},
        {"ref_audio_base64": "AAAA"},
        {"config": {"decode_mode": "greedy"}},
        {"config": {"chunk_ms": 500}},
        {"max_slice_nums": 99},
        {"speed": 1},
    ],
)
def test_what_is_not_served_is_refused_by_name(live: LiveServer, prepare: dict[str, Any]):
    with talk(live) as client:
        client.say("prepare", **prepare)
        error = client.next()
        assert error["type"] == "error"
        assert next(iter(prepare.get("config", prepare))) in error["error"]
