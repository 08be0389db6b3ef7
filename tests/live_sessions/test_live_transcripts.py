"""Golden transcripts of live sessions: what was said on each door, said again, with a clock that tests move."""

from __future__ import annotations

import json

import pytest
from live_sessions.tools import HEADER, RATE, LiveServer, jpeg, noise
from transcripts import replay
from websockets.sync.client import connect

PATHS = {"live": "/v1/live/sessions", "demo": "/ws/duplex/adx_1", "duplex": "/v1/duplex"}


@pytest.mark.parametrize("name", PATHS)
def test_a_session_goes_as_it_went(live: LiveServer, name: str):
    protocols = ["sensorium.duplex.v1"] if name == "duplex" else None
    address = f"ws://127.0.0.1:{live.port}{PATHS[name]}"
    with connect(address, max_size=None, subprotocols=protocols) as socket:  # type: ignore[arg-type]

        def send(text: str) -> None:
            event = json.loads(text)
            if event["type"] == "picture":
                socket.send(HEADER.pack(2, 0, 0, 0, 0) + jpeg())
            elif event["type"] == "sound":
                socket.send(HEADER.pack(1, 0, 0, event["n"], event["n"] * RATE) + noise().tobytes())
            else:
                socket.send(text)

        def receive() -> str:
            return str(socket.recv(timeout=60))

        replay(name, send, receive, lambda samples: noise(samples, samples))
