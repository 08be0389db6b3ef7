"""A tiny full-duplex model, and a server whose clock only tests move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_sessions.crowd import Crowd, crowd, emptied
from live_sessions.tools import LiveServer, serve_live
from minicpm.speaking import speaking_checkpoint

from sensorium.bench.codec import SMALL, random_voice
from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient


@pytest.fixture(scope="session")
def engine(golden_tiny: Path | None) -> Iterator[EngineClient]:
    if golden_tiny is None:
        pytest.skip("the random checkpoint of the reference data is not there")
    config = EngineConfig(
        model=str(golden_tiny), max_model_len=2048, max_num_seqs=8, kv_cache_bytes=64 << 20, max_sessions=4
    )
    with EngineClient(config) as client:
        yield client


@pytest.fixture(scope="session")
def server(engine: EngineClient) -> Iterator[LiveServer]:
    with serve_live(engine, served_model_name="tiny", max_live_queue=4) as server:
        yield server


@pytest.fixture
def live(server: LiveServer) -> Iterator[LiveServer]:
    """All places are free again after each test: nobody comes back to what it has left."""
    yield server
    assert server.empty()


@pytest.fixture(scope="session")
def speaking_server(golden_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("speaking") / "model"
    made = speaking_checkpoint(golden_tiny, folder)
    (made / "assets" / "token2wav" / "voices").mkdir()
    for name in ("anna", "default"):
        random_voice(SMALL, 0.6).save(made / "assets" / "token2wav" / "voices" / f"{name}.safetensors")
    config = EngineConfig(
        model=str(made), init_tts=True, codec_config={"n_timesteps": 1}, speech_slots=2, max_model_len=1024,
        kv_cache_bytes=64 << 20, max_sessions=2,
    )  # fmt: skip
    with EngineClient(config) as client, serve_live(client) as server:
        yield server


@pytest.fixture
def speaking(speaking_server: LiveServer) -> Iterator[LiveServer]:
    yield speaking_server
    assert speaking_server.empty()


@pytest.fixture(scope="module")
def place(engine: EngineClient) -> Iterator[Crowd]:
    with crowd(engine, max_audio_filesize_mb=1) as place:
        yield place


@pytest.fixture
def beside(place: Crowd) -> Iterator[Crowd]:
    """A server with a bystander, who is asked after each case whether it was harmed."""
    yield place
    place.unharmed()


@pytest.fixture(scope="module")
def beside_often(place: Crowd) -> Iterator[Crowd]:
    """For many small cases: the bystander is asked once, behind them all."""
    yield place
    place.unharmed()


@pytest.fixture
def alone(engine: EngineClient) -> Iterator[LiveServer]:
    """For cases that need a time of their own."""
    with serve_live(engine, served_model_name="tiny") as server:
        yield server
        assert emptied(server)
