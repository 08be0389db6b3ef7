"""F-001: clients that leave, at every point of a request, streamed or not. Nothing of them may stay."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from server.bodies import chat
from server.live import Live, cut_short, eventually, user
from server.samples import picture
from server.test_sdk import image_part

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
TOKENS = 1500
"""Seconds of work, if nobody ends it."""
POINTS = [
    "connected", "in the head", "after the head", "in the body", "after the body",
    "with a picture", "queued", "in the prompt", "after the first token", "in the answer", "after the answer",
]  # fmt: skip


@contextmanager
def connected(live: Live, *, reset: bool) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        yield connection


def receive_until(connection: socket.socket, found: bytes, times: int = 1) -> None:
    received = b""
    while received.count(found) < times:
        piece = connection.recv(65536)
        assert piece, received
        received += piece


def leave(live: Live, connection: socket.socket, point: str, stream: bool) -> None:
    """Send a request as far as `point`, and wait until the server has got there too."""
    content: object = "Go on."
    if point == "with a picture":
        content = [image_part(picture(512, 512)), "What is it?"]
    if point == "in the prompt":
        content = "word " * 1200
    tokens = 3 if point == "after the answer" else TOKENS
    body = json.dumps(chat(messages=user(content), max_tokens=tokens, ignore_eos=True, stream=stream)).encode()
    whole = f"{HEAD}Content-Length: {len(body)}\r\n\r\n".encode() + body
    head = len(whole) - len(body)
    sent = {"connected": 0, "in the head": head // 2, "after the head": head, "in the body": head + len(body) // 2}
    connection.sendall(whole[: sent.get(point, len(whole))])
    steps = live.engine.stats().steps
    if point == "queued":
        assert eventually(lambda: live.engine.num_requests > 0)
    elif point in ("in the prompt", "after the first token", "in the answer"):
        more = {"in the prompt": 1, "after the first token": 3, "in the answer": 40}[point]
        if stream and point != "in the prompt":
            receive_until(connection, b"data: ", more)
        else:
            assert eventually(lambda: live.engine.stats().steps >= steps + more)
    elif point == "after the answer":
        receive_until(connection, b"[DONE]" if stream else b'"usage"')


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_f001_work_ends_with_the_one_who_wanted_it(live: Live, point: str, stream: bool, reset: bool):
    before = live.engine.stats()
    with cut_short(live.engine, TOKENS), connected(live, reset=reset) as connection:
        leave(live, connection, point, stream)
    assert eventually(lambda: live.engine.stats().running == live.engine.stats().waiting == 0)
    assert live.engine.stats().kv_blocks_used == before.kv_blocks_used == 0
    assert live.engine.stats().restarts == before.restarts
    assert live.post(chat())[0] == 200


@pytest.mark.slow
def test_f001_a_thousand_who_leave_and_one_who_stays(live: Live):
    question = chat(messages=user("What is it?"), max_tokens=24, ignore_eos=True, seed=1, temperature=0)
    expected = live.post(question)[1]["choices"][0]["message"]["content"]
    for number in range(1000):
        with connected(live, reset=number % 2 == 0) as connection:
            leave(live, connection, POINTS[number % len(POINTS)], number % 3 == 0)
        if number % 50 == 0:
            assert live.post(question)[1]["choices"][0]["message"]["content"] == expected
    assert eventually(lambda: live.engine.num_requests == 0)
    assert live.engine.stats().kv_blocks_used == 0
