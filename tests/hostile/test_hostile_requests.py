"""Every single request of the catalogue of hostile inputs. Each is answered as its table says, what it must not
reach is not reached, memory stays bounded, and what other users are being told at that moment does not change.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from hostile import fields, generation, inline, pictures, recordings, structure, tensors, web
from hostile.cases import OK, Case, Table, table
from hostile.world import Target, World

MODULES = (web, inline, pictures, recordings, tensors, structure, fields, generation)
TABLE: Table = table(*(module.CASES for module in MODULES))
MEMORY = 192 << 20
"""What a request may make the server and its engine take for a moment; the largest bodies have 64 MB."""
WITHIN_S = 60.0
_INSIDES = re.compile(r"0x[0-9a-f]{6}|Traceback|\.py\b|sensorium\.|/home/|site-packages")


def check_error(answer: dict[str, Any], case: Case) -> None:
    """The shape of the API, naming the part, saying nothing of the server's insides."""
    error = answer["error"]
    assert len(json.dumps(answer)) < 4096
    assert not _INSIDES.search(error["message"]), error
    assert error["message"]
    if answer.get("type") == "error":  # the Anthropic API names the part in the message only
        assert (case.param or "") in error["message"]
        return
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"] or "").startswith(case.param or ""), error
    assert case.code is None or error["code"] == case.code, error


def parameters() -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.slow] if case.slow else [], id=re.sub(r"[^ -~]|\[|\]", "_", name))
        for name, case in TABLE.items()
    ]


@pytest.mark.parametrize("name", parameters())
def test_hostile_request(hostile: World, name: str):
    case = TABLE[name]
    server = hostile.servers[case.server]
    body = case.make(hostile)
    before, trapped = server.memory(), hostile.trap.connections
    server.watch_peak()
    begun = time.monotonic()
    status, answer = server.send(body, case.path, headers=case.headers)
    seconds = time.monotonic() - begun
    assert status in (case.status if isinstance(case.status, tuple) else (case.status,)), answer
    if status != OK:
        check_error(answer, case)
    elif case.check is not None:
        assert case.check(answer), answer
    assert seconds < WITHIN_S
    assert hostile.trap.connections == trapped
    for pid, peak in server.peak().items():
        assert peak - before[pid] < MEMORY, f"process {pid} took {(peak - before[pid]) >> 20} MB"
    assert undisturbed(server)


def undisturbed(server: Target) -> bool:
    assert server.health()[0] == OK
    assert not server.disturbed()
    return True
