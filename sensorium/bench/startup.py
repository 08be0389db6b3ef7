"""How long an engine takes to be ready, and to give its first token, in a process of its own each time."""

from __future__ import annotations

import time
from typing import Any

from sensorium.bench.model import random_prompts, run_batch
from sensorium.bench.offline import Runs
from sensorium.bench.report import spread
from sensorium.bench.roofline import machine
from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient


def measure_start(config: EngineConfig, runs: Runs) -> dict[str, Any]:
    """Seconds until `ready`, its parts as the engine counts them, and until one token of a short prompt is there.

    Runs that only warm up fill what is kept between starts: the machine's file cache and compiled kernels.
    """
    found: dict[str, list[float]] = {}
    model, facts = "", None
    for number in range(runs.count):
        start = time.perf_counter()
        with EngineClient(config, kind="process") as client:
            facts = client.facts
            times = {"ready_s": time.perf_counter() - start}
            run_batch(client, random_prompts(client, 1, 16, seed=number), 1)
            times["first_token_s"] = time.perf_counter() - start
            times |= {f"{part}_s": seconds for part, seconds in facts.seconds.items()}
            model = client.model_name
        if number >= runs.warmup:
            for name, seconds in times.items():
                found.setdefault(name, []).append(seconds)
    assert facts is not None
    told = {"model": model, "dtype": facts.dtype, "device": facts.device, "starts": runs.measured, **machine()}
    return told | {"rows": [{"stage": name.removesuffix("_s"), "s": spread(values)} for name, values in found.items()]}
