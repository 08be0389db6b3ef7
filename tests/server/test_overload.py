"""A server without room says so before it has looked at what is asked."""

from __future__ import annotations

import http.client
import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from server.bodies import chat
from server.live import Live, serve

from sensorium.engine.client import EngineClient
from sensorium.server.exchange import Exchanges
from sensorium.types import Message, SamplingParams

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@contextmanager
def full(engine: EngineClient, **settings: object) -> Iterator[Live]:
    """A server whose only place is taken."""
    with EngineClient(replace(engine.config, max_num_queued_reqs=1)) as narrow, serve(narrow, **settings) as live:
        prompt = narrow.prepare_chat([Message("user", ("Go on.",))])
        stream = narrow.submit(prompt, SamplingParams(max_tokens=1900, ignore_eos=True))
        try:
            yield live
        finally:
            narrow.cut()
            list(stream)


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


def asking(path: str = CHAT, version: str = "1.1", **headers: str) -> tuple[bytes, bytes]:
    """Head and body of a request."""
    body = json.dumps(chat()).encode()
    given = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"POST {path} HTTP/{version}\r\n{lines}\r\n".encode(), body


def read_answer(connection: socket.socket, number: int = 1) -> list[tuple[int, dict[str, str], bytes]]:
    """So many answers, in order."""
    with connection.makefile("rb") as file:
        answers: list[tuple[int, dict[str, str], bytes]] = []
        for _ in range(number):
            status = int(file.readline().split()[1])
            headers = http.client.parse_headers(file)
            found = {name.lower(): value for name, value in headers.items()}
            answers.append((status, found, file.read(int(found["content-length"]))))
        return answers


def test_a_body_that_comes_later_is_taken_in_before_it_is_refused(engine: EngineClient):
    with full(engine) as live, socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head, body = asking()
        for pieces in ((head + body,), (head, body), (head[:20], head[20:] + body[:5], body[5:])):
            for piece in pieces:
                connection.sendall(piece)
            ((status, headers, _),) = read_answer(connection)
            assert (status, headers["retry-after"]) == (429, "1")


def test_requests_sent_ahead_are_refused_one_by_one(engine: EngineClient):
    with full(engine) as live, socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
        requests = [b"".join(asking(x_request_id=name)) for name in ("first", "second", "third")]
        connection.sendall(b"".join(requests))
        answers = read_answer(connection, 3)
    assert [(status, headers["x-request-id"]) for status, headers, _ in answers] == [
        (429, "first"),
        (429, "second"),
        (429, "third"),
    ]


def test_a_refused_client_of_http_1_0_is_hung_up_on(engine: EngineClient):
    with full(engine) as live:
        answer = live.raw(b"".join(asking(version="1.0")))
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"\r\nconnection: close\r\n" in answer


def test_whoever_needs_a_key_is_asked_for_it_first(engine: EngineClient):
    with full(engine, api_keys=("secret",)) as live:
        assert live.raw(b"".join(asking(connection="close"))).startswith(b"HTTP/1.1 401 ")
        assert live.raw(b"".join(asking(connection="close", authorization="Bearer secret"))).startswith(
            b"HTTP/1.1 429 "
        )


def test_a_page_of_another_origin_may_read_the_refusal(engine: EngineClient):
    with full(engine, allowed_origins=("https://page.test",)) as live:
        answer = live.raw(b"".join(asking(connection="close", origin="https://page.test")))
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert b"access-control-allow-origin: https://page.test" in answer


def test_whole_requests_are_refused_before_the_application(
    engine: EngineClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    async def unreached(*_: object) -> None:
        raise AssertionError("the application was called")

    with full(engine) as live:
        monkeypatch.setattr(Exchanges, "__call__", unreached)
        with caplog.at_level(logging.INFO, "sensorium.access"):
            chat_answer = live.raw(b"".join(asking(connection="close", x_request_id="mine")))
            messages_answer = live.raw(b"".join(asking("/v1/messages", connection="close")))
        monkeypatch.undo()
        _, _, numbers = live.request("GET", "/metrics")
    assert b'"code":"overloaded"' in chat_answer
    assert b"\r\nx-content-type-options: nosniff\r\n" in chat_answer
    assert b'{"type":"error",' in messages_answer
    assert [record.getMessage() for record in caplog.records if "request_id=mine " in record.getMessage()]
    assert re.search(rb'sensorium:admission_rejections_total\{.*reason="requests"\} 2\.0', numbers)
    assert b'http_requests_total{handler="/v1/chat/completions",method="POST",status="429"} 1.0' in numbers
