"""Where the reference data of speech and sessions are: the full set beside the checkout, or the core kept here."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FULL = HERE.parents[1] / "shared" / "golden" / "minicpmo45-speech"
CORE = HERE / "golden" / "minicpmo45-speech"
needs_golden = pytest.mark.skipif(not FULL.is_dir(), reason="the reference data (../shared/golden) are not here")
"""For tests of what the core leaves out."""


def place_of(name: str) -> Path:
    """A file of the data; the test skips where only the full set has it."""
    folder = next((folder for folder in (FULL, CORE) if (folder / name).is_file()), None)
    if folder is None:
        pytest.skip(f"{name} is in the full reference data (../shared/golden), which are not here")
    return folder / name
