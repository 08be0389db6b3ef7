"""A world of servers for a file of hostile tests, gone with it, and their bystanders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile.world import World, world


@pytest.fixture(scope="module")
def hostile(any_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(any_model, tmp_path_factory.mktemp("hostile")) as made:
        yield made
        for server in made.servers.values():
            assert "Traceback" not in "".join(server.log)
            assert server.health()[0] == 200
            assert all(one.answers for one in server.bystanders)
            assert not server.disturbed()
        assert made.trap.connections == 0
