"""One engine and one open server for the benchmarks' tests."""

from collections.abc import Iterator

import pytest
from server.live import Live, serve

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient


@pytest.fixture(scope="session")
def live(any_model) -> Iterator[Live]:
    with (
        EngineClient(EngineConfig(model=str(any_model), max_model_len=1024)) as client,
        serve(client, served_model_name="tiny") as server,
    ):
        yield server
