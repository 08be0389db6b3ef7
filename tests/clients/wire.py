"""A proxy in front of a server's WebSockets that writes down what both sides say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

HEADERS = ("authorization", "openai-beta")


class Wire:
    """`said` holds (who, event) in the order in which the proxy saw them; who is "client" or "server"."""

    def __init__(self, upstream: str) -> None:
        """upstream: the server's address, http://HOST:PORT."""
        self._upstream = upstream.replace("http", "ws", 1)
        self._lock = threading.Lock()
        self.port = 0
        self.path = ""
        self.said: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def told(self, *kinds: str) -> list[dict[str, Any]]:
        """What the server said; only those types, if any are given."""
        return [event for who, event in self.said if who == "server" and (not kinds or event["type"] in kinds)]

    def asked(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for who, event in self.said if who == "client" and (not kinds or event["type"] in kinds)]

    def order(self) -> list[str]:
        """Types of what the server said; a run of one type counts once."""
        found: list[str] = []
        for event in self.told():
            if not found or found[-1] != event["type"]:
                found.append(event["type"])
        return found

    def _write(self, who: str, data: str | bytes) -> None:
        with self._lock:
            self.said.append((who, json.loads(data)))

    def hold(self, client: ServerConnection) -> None:
        request = client.request
        assert request is not None
        self.path = request.path
        headers = {name: request.headers[name] for name in HEADERS if name in request.headers}
        offered = [client.subprotocol] if client.subprotocol else None
        url = self._upstream + request.path
        with connect(url, max_size=None, additional_headers=headers, subprotocols=offered) as server:
            back = threading.Thread(target=self._carry, args=(server, client, "server"))
            back.start()
            self._carry(client, server, "client")
            back.join()

    def _carry(
        self, source: ServerConnection | ClientConnection, sink: ServerConnection | ClientConnection, who: str
    ) -> None:
        code, reason = 1000, ""
        try:
            while True:
                data = source.recv()
                self._write(who, data)
                sink.send(data)
        except ConnectionClosed as end:
            if end.rcvd is not None and end.rcvd.code not in (1005, 1006):
                code, reason = end.rcvd.code, end.rcvd.reason
        sink.close(code, reason)


@contextmanager
def wired(upstream: str) -> Iterator[Wire]:
    wire = Wire(upstream)
    with serve(wire.hold, "127.0.0.1", 0, max_size=None, compression=None, select_subprotocol=_first) as proxy:
        wire.port = proxy.socket.getsockname()[1]
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield wire
        finally:
            proxy.shutdown()
            thread.join()


def _first(connection: ServerConnection, offered: Any) -> Any:
    return "realtime" if "realtime" in offered else None
