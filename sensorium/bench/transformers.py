"""A model's decoder here and in transformers: same weights, same prompts, same greedy tokens, one run."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sensorium.bench.model import random_prompts
from sensorium.bench.roofline import machine
from sensorium.bench.sides import Ids, Sensorium, Side, Transformers, check_installed, equal_share, save_decoder
from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.llm import LLM


def compare(
    config: EngineConfig,
    batches: Sequence[int],
    prompt_len: int,
    num_tokens: int,
    repeat: int,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Tokens per second of both sides per batch, alternating runs, medians, and the share of equal tokens.

    From two requests on, once more with prompts and answers of mixed lengths. dtype: what transformers computes in.
    """
    check_installed(["transformers"])
    # Neither side may know a prompt from an earlier run, and neither loads a tower.
    config = replace(config, init_vision=False, init_audio=False, enable_prefix_caching=False)
    with LLM.from_config(config) as llm, tempfile.TemporaryDirectory() as folder:
        save_decoder(llm.client.loaded.model, Path(folder))
        other = Transformers(Path(folder), getattr(torch, dtype), torch.device("cpu"))
        loads = [load for batch in batches for load in _loads(llm.client, batch, prompt_len, num_tokens)]
        rows = [_row(Sensorium(llm), other, load, repeat) for load in loads]
        ours = llm.client.facts.dtype
    versions = {"dtype": ours, "transformers_dtype": dtype, "transformers": other.version}
    return {
        "model": llm.client.model_name,
        "prompt_tokens": prompt_len,
        "new_tokens": num_tokens,
        **versions,
        **machine(),
        "rows": rows,
    }


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that are there at once: token ids of each prompt, and how many tokens each wants."""

    name: str
    prompts: list[list[int]]
    wanted: list[int]

    @classmethod
    def even(cls, client: EngineClient, batch: int, prompt_len: int, num_tokens: int) -> Load:
        prompts = random_prompts(client, batch, prompt_len, seed=batch)
        return cls("equal", [list(prompt.ids) for prompt in prompts], [num_tokens] * batch)

    def mixed(self) -> Load:
        """The same prompts cut short by up to 7/8, and lengths from an eighth to all of it: what strangers send."""
        batch = len(self.prompts)
        shares = [1 / 8 + 7 / 8 * i / max(batch - 1, 1) for i in range(batch)]
        # Long prompts are not the ones with long answers: 7 has no factor in common with a power of two.
        prompts = [
            prompt[: max(int(len(prompt) * share), 1)] for prompt, share in zip(self.prompts, shares, strict=True)
        ]
        wanted = [max(int(self.wanted[i] * shares[i * 7 % batch]), 1) for i in range(batch)]
        return Load("mixed", prompts, wanted)


def _loads(client: EngineClient, batch: int, prompt_len: int, num_tokens: int) -> list[Load]:
    even = Load.even(client, batch, prompt_len, num_tokens)
    return [even, even.mixed()] if batch > 1 else [even]


def _row(ours: Side, other: Side, load: Load, repeat: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {ours.name: [], other.name: []}
    tokens: dict[str, Ids] = {}
    for run in range(repeat + 1):  # the first run of each warms up
        for side in (ours, other):
            started = time.perf_counter()
            tokens[side.name] = side.generate(load.prompts, load.wanted)
            if run > 0:
                times[side.name].append(time.perf_counter() - started)
    mine, theirs = (statistics.median(times[side.name]) for side in (ours, other))
    return {
        "batch": len(load.prompts),
        "lengths": load.name,
        "sensorium_tokens_per_s": sum(load.wanted) / mine,
        "transformers_tokens_per_s": sum(load.wanted) / theirs,
        "ratio": theirs / mine,
        "equal_tokens": equal_share(tokens[ours.name], tokens[other.name]),
    }
