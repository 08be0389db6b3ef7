"""The small model and engines around it, with a clock that only tests move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import CONFIG, ManualClock, OnlyTokenizer

from sensorium.config import EngineConfig
from sensorium.engine.engine import Engine
from sensorium.engine.loading import build_engine, encoder_cache_bytes
from sensorium.engine.protocol import MemoryPlan
from sensorium.models import loader
from sensorium.models.minicpmo import Config, Model


@pytest.fixture(scope="session")
def model() -> Model:
    made = loader.build(Model, Config.from_hf(CONFIG), "cpu", torch.float32)
    loader.init_random_(made, seed=3, std=0.2)
    return made


@pytest.fixture
def make_engine(model: Model) -> Callable[..., Engine]:
    def make(num_blocks: int = 512, **changes: object) -> Engine:
        config = EngineConfig(**changes)  # pyright: ignore
        plan = MemoryPlan(0, 0, 0, encoder_cache_bytes(config, model.hidden_size * 4), num_blocks * config.block_size)
        engine = build_engine(model, OnlyTokenizer(), config, torch.device("cpu"), torch.float32, plan)  # pyright: ignore
        engine.clock = ManualClock()
        return engine

    return make
