"""Every case of the catalogue of hostile inputs, categories A to O and Q, is run, or docs/security.md says why not; and
the limits which that page lists are those there are."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from hostile.test_hostile_requests import TABLE
from hostile.test_hostile_wire import LARGE

from sensorium.cli import serve
from sensorium.cli.parser import Parser
from sensorium.config import EngineConfig, MediaLimits, ServerConfig
from sensorium.envs import Environment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
NUMBERS = {f"H-{number:03}" for number in (*range(1, 324), *range(342, 348))}
NOT_RUN = {"H-194", "H-202", "H-344"}
OWNERS = {kind.__name__: kind for kind in (MediaLimits, EngineConfig, ServerConfig, Environment)}


def run() -> set[str]:
    """Numbers of table rows, and of tests that are named after them."""
    found = {name[:5] for name in (*TABLE, *LARGE)}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name in re.findall(r"def (test_h\d{3}\w*)", path.read_text()):
            found |= {f"H-{number}" for number in re.findall(r"h(\d{3})(?=_|$)", name)}
    return found


def test_every_number_is_run_or_justified():
    justified = re.findall(r"^\| (H-\d{3}) \| \S.* \|$", PAGE, re.MULTILINE)
    assert len(justified) == len(set(justified))
    assert f"{len(justified)} deviate:" in PAGE
    assert set(justified) <= NUMBERS
    assert run() - NUMBERS == set()
    assert NUMBERS - run() == NOT_RUN
    assert set(justified) >= NOT_RUN


def test_the_page_lists_the_limits_there_are():
    parser = Parser(prog="serve", usage="serve")
    serve.add_arguments(parser)
    row = r"^\| [^|]+ \| (\d+)(?: (KiB|MiB|s))? \| `([\w.]+)` \| (?:`([^`]+)`|fixed) \|$"
    rows = re.findall(row, PAGE, re.MULTILINE)
    assert len(rows) > 30
    for number, unit, name, flag in rows:
        owner, _, field = name.rpartition(".")
        place = OWNERS[owner]() if owner in OWNERS else importlib.import_module(f"sensorium.{owner}")
        assert getattr(place, field) == int(number) * {"KiB": 1 << 10, "MiB": 1 << 20}.get(unit, 1), name
        assert bool(flag) is (owner in OWNERS), name
        if owner == "Environment":
            assert flag == f"SENSORIUM_{field.upper()}"
        elif flag:
            assert flag in parser._option_string_actions, flag
