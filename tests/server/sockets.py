"""Sockets whose messages are JSON with a `type`."""

from __future__ import annotations

import json
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection


class JsonSocket:
    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def next(self) -> dict[str, Any]:
        return json.loads(self.socket.recv(timeout=120))

    def until(self, kind: str) -> list[dict[str, Any]]:
        """Everything up to the first event of that type, which must not be an error meanwhile."""
        events = [self.next()]
        while events[-1]["type"] != kind:
            assert events[-1]["type"] != "error", events[-1]
            events.append(self.next())
        return events

    def closed(self) -> int:
        """The code that the server closes with; what it says before is read."""
        try:
            while True:
                self.next()
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd else 1006
