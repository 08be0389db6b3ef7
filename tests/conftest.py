"""Session-wide settings and fixtures."""

from __future__ import annotations

import os

# Two pytest workers share two cores: one thread each. Set before torch reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGED = ROOT / "sensorium" / "packaged" / "sensorium-tiny"


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
