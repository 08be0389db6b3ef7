"""A world of servers for the files of hostile tests, with bystanders while such a file runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile.world import World, world
from server.live import eventually


@pytest.fixture(scope="session")
def hostile_world(any_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(any_model, tmp_path_factory.mktemp("hostile")) as made:
        yield made


@pytest.fixture(scope="module")
def hostile(hostile_world: World) -> Iterator[World]:
    servers = hostile_world.servers.values()
    bystanders = [one for server in servers for one in server.bystanders]
    for one in bystanders:
        one.come()
    yield hostile_world
    for one in bystanders:
        one.pause()
    for server in servers:
        assert "Traceback" not in "".join(server.log)
        assert server.health()[0] == 200
        assert eventually(lambda server=server: all(one.answers for one in server.bystanders))
        assert not server.disturbed()
    assert hostile_world.trap.connections == 0
