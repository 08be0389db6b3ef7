"""Thousands of different requests: what every process of `sensorium serve` holds stays as it was after a few."""

from __future__ import annotations

import base64
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from server.bodies import chat
from server.live import user
from server.samples import data_url, picture, sound
from server.test_faults import service

REQUESTS, WARM_UP, EVERY = 5000, 1000, 250
AT_ONCE = 8
# Caches that the first requests fill, so that what still grows is something else.
SMALL_CACHES = ("--mm-processor-cache-gb", "0.02", "--encoder-cache-bytes", "4M")


def question(number: int) -> dict[str, object]:
    """A picture of any size up to 400 x 400, a sound of up to 2 s, or words: no two alike."""
    rng = np.random.default_rng(number)
    if number % 4 < 2:
        width, height = (int(side) for side in rng.integers(20, 400, 2))
        url = data_url("image/jpeg", picture(width, height, "JPEG", seed=number))
        content: object = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    elif number % 4 == 2:
        data = base64.b64encode(sound(float(rng.uniform(0.2, 2)))).decode()
        content = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]
    else:
        content = f"{number}: " + "word " * int(rng.integers(1, 300))
    return chat(messages=user(content), max_tokens=int(rng.integers(1, 16)), stream=number % 3 == 0)


def children(pid: int) -> list[int]:
    return [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]


def resident(pid: int) -> float:
    """MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def held(server: int, engine: int) -> dict[str, float]:
    """By process. Workers come and go, so of those it is the largest."""
    (first,) = [pid for pid in children(server) if pid != engine]
    workers = max(map(resident, children(first)), default=0.0)
    return {"server": resident(server), "engine": resident(engine), "media": resident(first), "workers": workers}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_under_traffic(any_model: Path):
    samples: list[dict[str, float]] = []
    with service(any_model, *SMALL_CACHES) as live:

        def ask(number: int) -> int:
            body = json.dumps(question(number)).encode()
            return live.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})[0]

        with ThreadPoolExecutor(AT_ONCE) as clients:
            for number, status in enumerate(clients.map(ask, range(REQUESTS)), 1):
                assert status == 200, question(number - 1)
                if number % EVERY == 0:
                    samples.append(held(live.process.pid, live.engine_pid))
    warm = WARM_UP // EVERY
    for name in samples[0]:
        course = [round(sample[name]) for sample in samples]
        early, late = (float(np.median(part)) for part in (course[warm - 1 : warm + 3], course[-4:]))
        assert late <= early * 1.05, f"{name}, MB, every {EVERY} requests: {course}"
