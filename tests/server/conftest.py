"""One engine and one open server for all tests of the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from minicpm.speaking import speaking_checkpoint
from server.live import Live, serve
from server.samples import sound

from sensorium.config import EngineConfig, MediaLimits
from sensorium.engine.client import EngineClient

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ROOT / "sensorium" / "packaged" / "sensorium-tiny"
TINY = ROOT.parent / "shared" / "golden" / "minicpmo45" / "tiny"


@pytest.fixture(scope="session")
def engine(any_model: Path) -> Iterator[EngineClient]:
    limits = MediaLimits(max_bytes=4 << 20, max_pixels=50_000_000, max_items=8)
    config = EngineConfig(
        model=str(any_model), max_model_len=2048, max_num_seqs=8, max_waiting=8, kv_cache_bytes=64 << 20, limits=limits
    )
    with EngineClient(config) as client:
        yield client


@pytest.fixture(scope="session")
def spoken_engine(golden_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineClient]:
    """A very small random model that speaks, with a voice of its own."""
    folder = speaking_checkpoint(golden_tiny, tmp_path_factory.mktemp("speaking") / "model")
    (folder / "assets" / "HT_ref_audio.wav").write_bytes(sound(3.0))
    config = EngineConfig(
        model=str(folder),
        max_model_len=1024,
        max_num_seqs=8,
        kv_cache_bytes=64 << 20,
        init_tts=True,
        codec_config={"n_timesteps": 2},
    )
    with EngineClient(config) as client:
        yield client


@pytest.fixture(scope="session")
def speaking(spoken_engine: EngineClient) -> Iterator[Live]:
    with serve(spoken_engine, served_model_name="tiny") as server:
        yield server


@pytest.fixture(scope="session")
def live(engine: EngineClient) -> Iterator[Live]:
    with serve(engine, max_body_bytes=24 << 20, served_model_name="tiny") as server:
        yield server
