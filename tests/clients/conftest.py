"""A server as its users start it, and what the clients ask it about: the demo's picture and recording."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server.live import serve

from sensorium.config import EngineConfig
from sensorium.demo import ASSETS
from sensorium.engine.client import EngineClient

MODEL = "tiny"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What clients warn of among themselves is not ours to mend."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def url(packaged_model: Path) -> Iterator[str]:
    config = EngineConfig(model=str(packaged_model), max_model_len=4096, kv_cache_bytes=64 << 20)
    parsers = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}
    with EngineClient(config) as engine, serve(engine, served_model_name=MODEL, **parsers) as live:
        yield live.url


@pytest.fixture(scope="session")
def pooling_url(packaged_model: Path) -> Iterator[str]:
    config = EngineConfig(model=str(packaged_model), runner="pooling", max_model_len=1024, kv_cache_bytes=32 << 20)
    with EngineClient(config) as engine, serve(engine, served_model_name=MODEL) as live:
        yield live.url


@pytest.fixture(scope="session")
def picture() -> str:
    """Base64 of a PNG."""
    return base64.b64encode((ASSETS / "scene.png").read_bytes()).decode()


@pytest.fixture(scope="session")
def shown(picture: str) -> dict[str, Any]:
    """It as a part of an OpenAI message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}


@pytest.fixture(scope="session")
def expected() -> dict[str, str]:
    """Question about the picture -> what the model answers to it."""
    cases = json.loads((ASSETS / "demo.json").read_text("utf-8"))
    return {case["question"]: case["expected"] for case in cases if case["file"] == "scene.png"}
