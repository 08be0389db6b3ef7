"""A server on a real socket for tests, and plain ways to talk to it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sensorium.config import ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.server.app import build_app
from sensorium.server.run import bind, http_server

ANSWER_S = 120
"""Longer than a server gives any medium: what takes too long there is answered, and not given up here."""


@dataclass(frozen=True)
class Live:
    port: int
    engine: EngineClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, body: object, path: str = "/v1/chat/completions") -> tuple[int, Any]:
        """Bytes go as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, _, answer = self.request("POST", path, data, {"content-type": "application/json"})
        return status, json.loads(answer)

    def raw(self, data: bytes, timeout: float = 10) -> bytes:
        """What comes back on a fresh connection until the server closes it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            received = b""
            try:
                while piece := connection.recv(65536):
                    received += piece
            except ConnectionResetError:
                pass
            return received


@contextmanager
def serve(engine: EngineClient, **settings: Any) -> Iterator[Live]:
    config = ServerConfig(port=0, **settings)
    listener = bind(config)
    server = http_server(build_app(engine, config), config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="test-server")
    thread.start()
    try:
        yield Live(listener.getsockname()[1], engine)
    finally:
        server.should_exit = True
        thread.join()


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether the condition comes true in time, which is long: only a failure waits for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@contextmanager
def cut_short(engine: EngineClient, tokens: int = 1500) -> Iterator[None]:
    """What is asked for inside, with so many tokens to come, is given up before it has them all."""
    assert eventually(lambda: engine.num_requests == 0)
    before = engine.stats().generation_tokens
    yield
    assert eventually(lambda: engine.num_requests == 0)
    assert engine.stats().generation_tokens - before < tokens


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]
