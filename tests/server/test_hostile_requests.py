"""Hostile and broken requests. Each is answered 4xx naming the part at fault, the engine stays well, and what another
user is being told at that moment does not change. Cases that expect OK are harmless and must be answered.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from server import hostile_fields, hostile_media
from server.bodies import OK, chat
from server.live import Live, eventually, user

CASES = hostile_media.CASES | hostile_fields.CASES


class Neighbour:
    """Another user, whose streams run all the time and must always say the same."""

    BODY = chat(messages=user("Tell me a story."), max_tokens=40, temperature=0, ignore_eos=True, stream=True)

    def __init__(self, live: Live) -> None:
        self._live = live
        self._stop = threading.Event()
        self.expected = self.ask()
        self.answers: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def ask(self) -> str:
        body = json.dumps(self.BODY).encode()
        _, _, answer = self._live.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        assert answer.endswith(b"data: [DONE]\n\n")
        chunks = [json.loads(line[6:]) for line in answer.decode().split("\n\n")[:-2]]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.answers.append(self.ask())

    def leave(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture(scope="module")
def neighbour(live: Live) -> Iterator[Neighbour]:
    neighbour = Neighbour(live)
    yield neighbour
    neighbour.leave()
    assert neighbour.answers
    assert set(neighbour.answers) == {neighbour.expected}


def check_error(answer: dict[str, Any], param: str | None) -> None:
    """The OpenAI shape, naming the part, saying nothing of the server's insides."""
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(json.dumps(answer)) < 4096
    if param is not None:
        assert (error["param"] or "").startswith(param), error
    assert not re.search(r"0x[0-9a-f]{6}|Traceback|\.py\b|sensorium\.|/home/|site-packages", error["message"]), error


@pytest.mark.parametrize("name", CASES)
def test_hostile_request(live: Live, neighbour: Neighbour, name: str):
    body, expected, param = CASES[name]
    status, answer = live.post(body)
    assert status in (expected if isinstance(expected, tuple) else (expected,)), answer
    if status != OK:
        check_error(answer, param)
    assert live.request("GET", "/health")[0] == OK
    assert len(neighbour.answers) < 1 or neighbour.answers[-1] == neighbour.expected


def test_there_are_enough_cases():
    assert len({name.split()[0] for name in CASES}) >= 60


def test_nothing_is_left_behind(live: Live):
    """After all cases: no request, no block and no thread more than an idle engine has."""
    assert eventually(lambda: live.engine.num_requests == 0)
    assert live.post(chat())[0] == OK
    assert eventually(lambda: live.engine.stats().running == live.engine.stats().waiting == 0)
