"""Latency of batches and throughput of many requests in this process, ours beside others, each beside its roofline."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sensorium.bench import roofline
from sensorium.bench.datasets import Ask, Dataset, content
from sensorium.bench.model import random_prompts
from sensorium.bench.report import spread
from sensorium.bench.roofline import Ceilings, Sizes, machine
from sensorium.bench.sides import (
    Ids,
    Place,
    Sensorium,
    Side,
    check_installed,
    equal_share,
    open_other,
    save_decoder,
)
from sensorium.config import EngineConfig
from sensorium.errors import UnsupportedError
from sensorium.llm import LLM
from sensorium.types import SamplingParams

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Runs:
    """How often each thing is done: first to warm up, then measured."""

    warmup: int = 1
    measured: int = 3

    @property
    def count(self) -> int:
        return self.warmup + self.measured


@dataclass(frozen=True, slots=True)
class Opened:
    """Our engine, and what its numbers are read with."""

    llm: LLM
    ceilings: Ceilings
    sizes: Sizes
    facts: Row


def latency(
    config: EngineConfig,
    batches: Sequence[int],
    input_len: int,
    output_len: int,
    runs: Runs,
    others: Sequence[str] = (),
) -> Row:
    """Of each batch in milliseconds: until all have their first token, per token after it, and until the end.

    Prompts are random tokens, answers greedy and of exactly output_len tokens.
    """
    prompts: dict[int, Ids] = {}
    answers: dict[int, Ids] = {}

    def measure(side: Side, opened: Opened) -> Iterator[Row]:
        for batch in batches:
            ids = prompts.setdefault(batch, _random_ids(opened.llm, batch, input_len))
            row, tokens = _latency_row(side, ids, output_len, runs, opened)
            expected = answers.setdefault(batch, tokens)
            yield row if expected is tokens else row | {"equal_tokens": equal_share(expected, tokens)}

    found = _sides(config, others, measure, "e2el_ms")
    return found | {"input_len": input_len, "output_len": output_len, "rows": found["rows"]}


def throughput(
    config: EngineConfig, dataset: Dataset, runs: Runs, others: Sequence[str] = (), most_at_once: int = 16
) -> Row:
    """Requests and tokens per second where all requests are there at once.

    most_at_once: transformers has no scheduler, and gets so many in a padded batch.
    """
    if dataset.name == "random-mm" and others:
        raise UnsupportedError("compare: the others are given text only", param="compare")
    asks: list[Ask] = []

    def measure(side: Side, opened: Opened) -> Iterator[Row]:
        llm = opened.llm
        asks.extend(() if asks else _load(dataset, llm))
        wanted = [ask.max_tokens for ask in asks]
        if dataset.name == "random-mm":
            yield _media_throughput(opened, dataset, asks, runs)
            return
        ids = [llm.client.tokenizer.encode(ask.text) for ask in asks]
        step = len(ids) if side.name != "transformers" else most_at_once
        cuts = [slice(start, start + step) for start in range(0, len(ids), step)]

        def run() -> None:
            for cut in cuts:
                side.generate(ids[cut], wanted[cut])

        yield _throughput_row(side.name, _timed(runs, run)[0], [len(prompt) for prompt in ids], wanted, opened)

    found = _sides(config, others, measure, "seconds")
    return found | {"dataset": dataset.name, "num_prompts": len(asks), "rows": found["rows"]}


def _sides(
    config: EngineConfig, others: Sequence[str], measure: Callable[[Side, Opened], Iterator[Row]], ratio_of: str
) -> Row:
    """Ours, then each of the others on the same checkpoint; ratio: how many times as long it took as ours."""
    check_installed(others)
    # Nobody may know a prompt from an earlier run.
    config = replace(config, enable_prefix_caching=False)
    if others:
        config = replace(config, init_vision=False, init_audio=False)
    with tempfile.TemporaryDirectory(prefix="sensorium-") as name:
        with LLM.from_config(config) as llm:
            loaded = llm.client.loaded
            if others:
                save_decoder(loaded.model, Path(name))
            place = Place(loaded.device, loaded.dtype, llm.client.max_model_len, config.gpu_memory_utilization)
            ceilings = roofline.measure(place.device, place.dtype)
            opened = Opened(llm, ceilings, Sizes.of(loaded.model, place.dtype), _facts(llm, ceilings))
            ours = list(measure(Sensorium(llm), opened))
        rows, versions = list(ours), {}
        del loaded
        for other in others:
            _collect()
            side = open_other(other, Path(name), place)
            versions[other] = side.version
            for mine, row in zip(ours, measure(side, opened), strict=True):
                rows.append(row | {"ratio": row[ratio_of]["median"] / mine[ratio_of]["median"]})
            del side
    return opened.facts | versions | {"rows": rows}


def _collect() -> None:
    """Give back what an engine that is gone held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _facts(llm: LLM, ceilings: Ceilings) -> Row:
    facts = llm.client.facts
    return {"model": facts.model_name, "dtype": facts.dtype, **machine(), "ceilings": ceilings.facts()}


def _random_ids(llm: LLM, count: int, length: int) -> Ids:
    return [list(prompt.ids) for prompt in random_prompts(llm.client, count, length, seed=count)]


def _timed(runs: Runs, *calls: Callable[[], object]) -> list[list[float]]:
    """Seconds of each call's measured runs."""
    seconds: list[list[float]] = [[] for _ in calls]
    for run in range(runs.count):
        for call, times in zip(calls, seconds, strict=True):
            started = time.perf_counter()
            call()
            if run >= runs.warmup:
                times.append(time.perf_counter() - started)
    return seconds


def _latency_row(side: Side, ids: Ids, output_len: int, runs: Runs, opened: Opened) -> tuple[Row, Ids]:
    batch, length = len(ids), len(ids[0])
    tokens: list[Ids] = []
    # In turns, so that a machine that becomes slower does so for both.
    first, whole = _timed(
        runs,
        lambda: side.generate(ids, [1] * batch),
        lambda: tokens.append(side.generate(ids, [output_len] * batch)),
    )
    row: Row = {
        "side": side.name,
        "batch_size": batch,
        "ttft_ms": spread([value * 1e3 for value in first]),
        "ttft_roofline": opened.ceilings.share(opened.sizes.prefill([length] * batch), spread(first)["median"]),
        "itl_ms": None,
        "itl_roofline": None,
        "e2el_ms": spread([value * 1e3 for value in whole]),
        "tokens_per_s": batch * output_len / spread(whole)["median"],
    }
    if output_len > 1:
        gaps = [(total - begun) / (output_len - 1) for begun, total in zip(first, whole, strict=True)]
        step = opened.sizes.decode([length + output_len // 2] * batch)
        row["itl_ms"] = spread([gap * 1e3 for gap in gaps])
        row["itl_roofline"] = opened.ceilings.share(step, spread(gaps)["median"])
    return row, tokens[-1]


def _throughput_row(
    name: str, seconds: Sequence[float], lengths: Sequence[int], wanted: Sequence[int], opened: Opened
) -> Row:
    rates = [1 / value for value in seconds]
    outputs, total = sum(wanted), sum(wanted) + sum(lengths)
    work = opened.sizes.generate(lengths, wanted)
    return {
        "side": name,
        "requests_per_s": spread([len(wanted) * rate for rate in rates]),
        "output_tokens_per_s": spread([outputs * rate for rate in rates]),
        "total_tokens_per_s": spread([total * rate for rate in rates]),
        "roofline": opened.ceilings.share(work, spread(seconds)["median"]),
        "seconds": spread(seconds),
    }


def _load(dataset: Dataset, llm: LLM) -> list[Ask]:
    return dataset.load(lambda text: len(llm.client.tokenizer.encode(text)))


def _media_throughput(opened: Opened, dataset: Dataset, asks: Sequence[Ask], runs: Runs) -> Row:
    """As a caller waits for it: decoding and preprocessing included. Every run has media that no cache knows."""
    others = [_load(replace(dataset, seed=dataset.seed + 1 + run), opened.llm) for run in range(runs.count - 1)]
    waiting = [[[{"role": "user", "content": content(ask)}] for ask in each] for each in (*others, asks)]
    params = [SamplingParams(temperature=0.0, max_tokens=ask.max_tokens, ignore_eos=True) for ask in asks]
    lengths: list[int] = []

    def run() -> None:
        outputs = opened.llm.chat(waiting.pop(), params, use_tqdm=False)
        lengths[:] = [len(output.prompt_token_ids or ()) for output in outputs]

    (seconds,) = _timed(runs, run)
    return _throughput_row("sensorium", seconds, lengths, [ask.max_tokens for ask in asks], opened)
