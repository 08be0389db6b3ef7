"""A server without room says so before it has looked at what is asked."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from server.bodies import chat
from server.live import Live, serve
from server.test_faults import Streaming

from sensorium.engine.client import EngineClient

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@contextmanager
def full(engine: EngineClient, **settings: object) -> Iterator[Live]:
    """A server whose only place is taken."""
    with EngineClient(replace(engine.config, max_num_queued_reqs=1)) as narrow, serve(narrow, **settings) as live:
        stream = Streaming(live, max_tokens=1900)
        assert stream.begun.wait(60)
        try:
            yield live
        finally:
            narrow.cut()
            stream.wait()


def test_what_there_is_no_room_for_is_not_read(engine: EngineClient):
    with full(engine, root_path="/here") as live:
        for path in (CHAT, "/v1/completions", "/v1/responses", "/v1/messages"):
            status, headers, answer = live.request("POST", path, b"{no JSON", JSON)
            assert (status, int(headers["retry-after"])) == (429, 1), path
            assert b"the queue is full" in answer
        assert live.request("GET", "/v1/models")[0] == 200


def test_a_server_may_do_without_a_queue(engine: EngineClient):
    with EngineClient(replace(engine.config, max_waiting=0)) as client, serve(client) as live:
        assert live.post(chat())[0] == 200


def test_a_refused_client_keeps_its_connection(engine: EngineClient):
    body = json.dumps(chat()).encode()
    with full(engine) as live:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
        connection.connect()
        own = connection.sock.getsockname()
        for _ in range(3):
            connection.request("POST", CHAT, body, JSON)
            response = connection.getresponse()
            assert (response.status, response.getheader("connection")) == (429, None)
            response.read()
            assert connection.sock.getsockname() == own
        connection.close()


def test_a_large_body_is_not_waited_for(engine: EngineClient):
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10000000\r\n\r\n"
    )
    with full(engine) as live:
        answer = live.raw(head.encode() + b"{")
    assert answer.startswith(b"HTTP/1.1 429")
    assert b"connection: close" in answer
