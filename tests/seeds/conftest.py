"""Checkpoints and media of the seeds, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from seeds import extract
from seeds.servers import Servers
from seeds.stage import GOLDEN, SCOPES, Stage, media_server, write_media


@pytest.fixture(scope="session", autouse=True)
def seeds():
    """The documents must be there; outsiders run the snippets of docs/ in tests/test_docs.py."""
    if not extract.SEEDS.is_dir() or not GOLDEN.is_dir():
        pytest.skip("the seed documents (../shared/seeds) and ../shared/golden are not beside this checkout")


@pytest.fixture(autouse=True)
def over() -> Iterator[None]:
    """What a script has made ends with its test: its functions would keep its engines until the collector comes."""
    yield
    while SCOPES:
        SCOPES.pop().clear()


@pytest.fixture(scope="session")
def media(tmp_path_factory, seeds) -> Path:
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session")
def stage(tmp_path_factory, media) -> Iterator[Stage]:
    with media_server(media) as (url, asked):
        yield Stage(tmp_path_factory.mktemp("models"), media, url, asked)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()
