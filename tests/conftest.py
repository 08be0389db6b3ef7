"""Session-wide settings and fixtures."""

from __future__ import annotations

import os

# Two pytest workers share two cores: one thread each. Set before torch reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import re
import sys
from pathlib import Path

import hypothesis
import pytest

from sensorium.kernels import compiled

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = ROOT / "sensorium" / "packaged" / "sensorium-tiny"

# Where the environment keeps Python from writing what it compiles, each of the many processes that tests start would
# compile all of our modules again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes says nothing on a machine that does other things too.
hypothesis.settings.register_profile("any speed", deadline=None)
hypothesis.settings.load_profile("any speed")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files of nothing but slow tests are not read where those are left out: what they import takes seconds."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return bool(re.search(r"^pytestmark = \[?pytest\.mark\.slow\b", collection_path.read_text("utf-8"), re.M)) or None


@pytest.fixture(scope="session", autouse=True)
def _kernels() -> None:
    """Compile what engines would otherwise compile beside the tests, once for all sessions on these sources."""
    if not compiled.is_compiled():
        compiled.prepare()


@pytest.fixture(scope="session")
def any_model(golden_tiny: Path | None) -> Path:
    """A model folder that loads quickly, for tests that do not care what it answers."""
    if (PACKAGED / "model.safetensors").is_file():
        return PACKAGED
    if golden_tiny is None:
        pytest.skip("neither the packaged model nor the reference data is there")
    return golden_tiny


@pytest.fixture(scope="session")
def golden_tiny() -> Path | None:
    """The random checkpoint of the reference data: from the full set, or the core kept here."""
    folders = [ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden"]
    candidates = [folder / "minicpmo45" / "tiny" for folder in folders]
    return next((folder for folder in candidates if (folder / "model.safetensors").is_file()), None)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The full reference data, beside the checkout; outsiders run the core in tests/golden instead."""
    folder = ROOT.parent / "shared" / "golden"
    if not folder.is_dir():
        pytest.skip("the full golden data is not beside this checkout; tests/golden holds the core")
    return folder


@pytest.fixture(scope="session")
def golden_core() -> Path:
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def packaged_model() -> Path:
    if not (PACKAGED / "model.safetensors").is_file():
        pytest.skip("the packaged model is not built: see training/README.md")
    return PACKAGED
