"""A server under attack, and one of its users, who must not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from live_sessions.raw import Raw, raw
from live_sessions.tools import SPEAKS, Client, LiveServer, duplex, serve_live
from server.live import eventually

from sensorium.engine.client import EngineClient


@dataclass
class Crowd:
    """All sessions but the bystander's are over when a case is."""

    server: LiveServer
    bystander: Client

    def raw(self, path: str, **options: Any) -> Any:
        return raw(self.server.port, path, **options)

    def unharmed(self) -> None:
        """The bystander is answered, nobody else holds anything, and the engine is idle."""
        server, service = self.server, self.server.service

        def is_alone() -> bool:
            # Time passes, so that who may come back has been given up; the bystander goes on talking.
            server.clock.advance(10)
            self._next()
            return service.num_sessions == service.num_sockets == 1 and not server.engine.num_requests

        assert eventually(is_alone)
        self._next()

    def _next(self) -> None:
        client = self.bystander
        number = sum(event["type"] == "unit" for event in client.events)
        seen = len(client.events)
        unit = client.second(number)
        assert (unit["n"], unit["behind_ms"]) == (number, 0)
        assert all(event["type"] in ("unit", "turn", "text") for event in client.events[seen:])


@contextmanager
def crowd(engine: EngineClient, **settings: Any) -> Iterator[Crowd]:
    with serve_live(engine, served_model_name="tiny", live_max_s=1e9, **settings) as server, duplex(server) as client:
        client.start(**SPEAKS)
        yield Crowd(server, client)
        client.say("stop")
        client.until("bye")


def flood(peer: Raw, data: bytes) -> None:
    """Send what may not all be taken."""
    with suppress(ConnectionError):
        peer.send(data)


def emptied(server: LiveServer) -> bool:
    """Let the time run out in which clients may come back; whether all sessions of this server end then."""
    return eventually(lambda: server.clock.advance(31) is None and not server.service.num_sessions)
