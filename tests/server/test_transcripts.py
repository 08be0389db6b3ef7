"""Golden transcripts of /v1/realtime: what real clients said, said again, and what they were answered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from server.live import Live, eventually, serve
from server.test_realtime import speech
from transcripts import FOLDER, replay
from websockets.sync.client import connect

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient

CUT = ("realtime-interruption",)
"""Recorded with answers that do not end by themselves, up to where they were stopped; so was the cancelled one."""


@pytest.fixture(scope="module")
def recorded(packaged_model: Path) -> Iterator[Live]:
    """The server that the clients were recorded with; see tests/clients/conftest.py."""
    config = EngineConfig(model=str(packaged_model), init_tts=True, max_model_len=4096, kv_cache_bytes=64 << 20)
    parsers = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}
    with EngineClient(config) as engine, serve(engine, served_model_name="tiny", **parsers) as live:
        yield live


class Microphone:
    """The packaged sentence between silences, again and again."""

    def __init__(self) -> None:
        self._sound = np.concatenate([np.zeros(12_000, "<i2"), speech(silence_s=1.0)])
        self._place = 0

    def hear(self, samples: int) -> np.ndarray:
        places = np.arange(self._place, self._place + samples) % len(self._sound)
        self._place += samples
        return self._sound[places]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("realtime-*.jsonl")))
def test_a_conversation_goes_as_it_went(recorded: Live, name: str, monkeypatch: pytest.MonkeyPatch):
    if name in (*CUT, "realtime-cancel"):
        endless = replace(recorded.engine.default_sampling, min_tokens=600)
        monkeypatch.setattr(recorded.engine, "default_sampling", endless)
    with connect(f"ws://127.0.0.1:{recorded.port}/v1/realtime?model=tiny", max_size=None) as socket:

        def receive() -> str:
            return str(socket.recv(timeout=60))

        replay(name, socket.send, receive, Microphone().hear, is_cut=name in CUT)
    assert eventually(lambda: recorded.engine.num_requests == 0)
