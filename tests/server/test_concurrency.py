"""Many at once: 64 streams with pictures and sounds, each equal to its solo run, and the memory comes back."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import gc
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from server.live import Live, serve
from server.samples import data_url, picture, sound

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient

STREAMS = 64


def question(number: int) -> list[dict]:
    """Eight different questions: pictures of two sizes, sounds of two lengths, plain text."""
    if number % 8 < 4:
        side = 300 + 60 * (number % 4)
        url = data_url("image/png", picture(side, 200, seed=number % 8))
        return [{"type": "text", "text": f"Question {number % 8}"}, {"type": "image_url", "image_url": {"url": url}}]
    if number % 8 < 7:
        data = base64.b64encode(sound(0.5 + number % 8 / 8)).decode()
        return [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}, {"type": "text", "text": "?"}]
    return [{"type": "text", "text": "Tell me a story."}]


async def ask(client: AsyncOpenAI, number: int) -> tuple[str, str | None]:
    text, reason = "", None
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": question(number)}],  # pyright: ignore
        temperature=0,
        max_tokens=12,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reason = choice.finish_reason or reason
    return text, reason


def resident_bytes() -> int:
    """Memory in use, without what the allocator keeps back for its next callers."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture(scope="module")
def crowded(golden_core: Path):
    folder = golden_core / "minicpmo45" / "tiny"
    config = EngineConfig(model=str(folder), max_model_len=1024, max_num_seqs=STREAMS, kv_cache_bytes=8 << 20)
    with EngineClient(config) as engine, serve(engine, served_model_name="tiny") as live:
        yield live


async def test_64_streams_equal_their_solo_runs(crowded: Live) -> None:
    async with AsyncOpenAI(base_url=f"{crowded.url}/v1", api_key="none", max_retries=0) as client:
        solo = [await ask(client, number) for number in range(8)]
        used = []
        for _ in range(5):
            answers = await asyncio.gather(*(ask(client, number) for number in range(STREAMS)))
            assert answers == [solo[number % 8] for number in range(STREAMS)]
            assert {reason for _, reason in answers} == {"length"}
            used.append(resident_bytes())
    stats = crowded.engine.stats()
    assert (stats.running, stats.waiting, stats.kv_blocks_used) == (0, 0, 0)
    assert crowded.engine.num_requests == 0
    # The first rounds touch the KV cache and compile kernels for the shapes there are; a request that left its
    # picture behind would add far more.
    assert used[-1] <= used[2] * 1.05, f"resident bytes after each round: {used}"
