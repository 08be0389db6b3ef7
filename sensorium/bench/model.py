"""Latency and throughput of one model: random text prompts, greedy, no early end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.bench.roofline import machine
from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient, Stream
from sensorium.errors import EngineError
from sensorium.types import Failed, Finished, Prompt, SamplingParams


def measure_model(
    config: EngineConfig, batches: Sequence[int], prompt_len: int, num_tokens: int, repeat: int
) -> dict[str, Any]:
    with EngineClient(config) as client:
        run_batch(client, random_prompts(client, 1, prompt_len, seed=0), min(num_tokens, 8))
        rows = []
        for batch in batches:
            runs = [
                run_batch(client, random_prompts(client, batch, prompt_len, seed=1 + run), num_tokens)
                for run in range(repeat)
            ]
            rows.append({"batch": batch} | {name: statistics.median(run[name] for run in runs) for name in runs[0]})
        facts = client.facts
        return {
            "model": client.model_name,
            "dtype": facts.dtype,
            "prompt_tokens": prompt_len,
            "new_tokens": num_tokens,
            "load_s": sum(facts.seconds.values()),
            **machine(),
            "rows": rows,
        }


def random_prompts(client: EngineClient, count: int, length: int, seed: int) -> list[Prompt]:
    """Different prompts of ordinary tokens, so that no prefix is shared."""
    rng = np.random.default_rng(seed)
    plain = np.setdiff1d(np.arange(client.tokenizer.vocab_size), list(client.tokenizer.special_ids))
    return [Prompt(tuple(rng.choice(plain, length).tolist())) for _ in range(count)]


def run_batch(client: EngineClient, prompts: Sequence[Prompt], num_tokens: int) -> dict[str, float]:
    """Submit all at once. Times in ms: to the first token, between tokens; tokens of all sequences per second."""
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    started = time.perf_counter()
    streams = [client.submit(prompt, sampling) for prompt in prompts]
    ends = [_finish(stream) for stream in streams]
    seconds = time.perf_counter() - started
    first = [end.timings.ttft_s or 0.0 for end in ends]
    between = [
        (end.timings.total_s - ttft) / max(end.usage.completion_tokens - 1, 1)
        for end, ttft in zip(ends, first, strict=True)
    ]
    return {
        "ttft_ms": statistics.median(first) * 1e3,
        "itl_ms": statistics.median(between) * 1e3,
        "prompt_tokens_per_s": sum(end.usage.prompt_tokens for end in ends) / max(first),
        "new_tokens_per_s": sum(end.usage.completion_tokens for end in ends) / seconds,
    }


def _finish(stream: Stream) -> Finished:
    for event in stream:
        if isinstance(event, Failed):
            raise EngineError(event.message)
        if isinstance(event, Finished):
            return event
    raise AssertionError("a stream ended without its last event")
