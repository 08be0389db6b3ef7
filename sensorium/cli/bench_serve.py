"""`sensorium bench serve`: open-loop load on a running server, by HTTP. Flags are called as in `vllm bench serve`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.bench.datasets import NAMES, Dataset
from sensorium.bench.http import PATHS, Target, TokenCounter, find_model
from sensorium.bench.http import run as send
from sensorium.bench.report import show
from sensorium.bench.serving import METRICS, read_goodput, summarise
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer, json_object, number
from sensorium.errors import ConfigError, SensoriumError


def rate(text: str) -> float:
    """A number, or inf."""
    return float("inf") if text == "inf" else number(text)


def percentiles(text: str) -> list[float]:
    return [number(part) for part in text.split(",")]


def add_arguments(parser: Parser) -> None:
    parser.add_argument("model", nargs="?", default="", help="name that requests carry; none is what the server lists")
    parser.add_argument("--model", dest="served_model", default="", metavar="NAME", help="the same")
    _add_target(parser.add_argument_group("server"))
    _add_load(parser.add_argument_group("load"))
    add_dataset(parser.add_argument_group("requests"))
    result = parser.add_argument_group("result")
    limits = " ".join(f"{name}:MS" for name in METRICS)
    result.add_argument("--goodput", nargs="+", default=[], metavar="METRIC:MS", help=f"count what keeps to {limits}")
    result.add_argument(
        "--metric-percentiles", type=percentiles, default=[90.0, 99.0], metavar="P,P", help="(default: 90,99)"
    )
    add_json(result)


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--base-url", default="", metavar="URL", help="in place of --host and --port")
    group.add_argument("--host", default="127.0.0.1")
    group.add_argument("--port", type=integer, default=8000, metavar="N", help="(default: 8000)")
    group.add_argument(
        "--backend",
        choices=tuple(PATHS),
        help="completions or chat completions; media need the latter (default: it fits)",
    )
    group.add_argument("--endpoint", default="", metavar="PATH", help="(default: the backend's)")
    group.add_argument("--extra-body", type=json_object, default={}, metavar="JSON", help="added to every request")
    group.add_argument("--disable-ignore-eos", action="store_true", help="let answers end where the model ends them")


def _add_load(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--request-rate", type=rate, default=float("inf"), metavar="X", help="a second (default: inf)")
    group.add_argument(
        "--burstiness", type=rate, default=1.0, metavar="X",
        help="shape of the gamma distributed gaps: 1 is Poisson, less comes in bursts, inf is constant (default: 1)",
    )  # fmt: skip
    group.add_argument("--max-concurrency", type=integer, metavar="N", help="requests under way at most")
    group.add_argument(
        "--num-warmups", type=integer, default=1, metavar="N", help="sent first, one by one (default: 1)"
    )


def add_dataset(group: argparse._ArgumentGroup) -> None:
    """What is asked; build it with dataset()."""
    group.add_argument("--dataset-name", choices=NAMES, default="random", help="(default: random)")
    group.add_argument("--dataset-path", type=Path, metavar="PATH", help="custom: JSON lines; sharegpt: its JSON file")
    group.add_argument("--num-prompts", type=integer, default=100, metavar="N", help="(default: 100)")
    group.add_argument("--seed", type=integer, default=0, metavar="N", help="of texts, media and arrivals (default: 0)")
    for names, field in (
        (("--random-input-len", "--input-len"), "input"),
        (("--random-output-len", "--output-len"), "output"),
    ):
        group.add_argument(*names, type=integer, default=128, metavar="N", help=f"{field} tokens (default: 128)")
    group.add_argument("--random-range-ratio", type=number, default=0.0, metavar="X", help="lengths vary by so much")
    group.add_argument(
        "--random-mm-base-items-per-request", type=integer, default=1, metavar="N", help="media each (default: 1)"
    )
    group.add_argument(
        "--random-mm-bucket-config", type=json_object, metavar="JSON",
        help='"(height, width, frames)" to share; one frame is a picture (default: {"(256, 256, 1)": 1})',
    )  # fmt: skip
    group.add_argument("--custom-output-len", type=integer, metavar="N", help="in place of the file's output_tokens")
    group.add_argument("--sharegpt-output-len", type=integer, metavar="N", help="in place of the answers' lengths")


def add_json(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--json", "--output-json", nargs="?", const="-", metavar="FILE", help="write JSON there; with no FILE, print it"
    )


def dataset(given: dict[str, Any]) -> Dataset:
    own = "custom_output_len" if given["dataset_name"] == "custom" else "sharegpt_output_len"
    for name in ("num_prompts", "random_input_len", "random_output_len", "random_mm_base_items_per_request"):
        if given[name] < 1:
            raise ConfigError(f"{name} must be at least 1, not {given[name]}", param=name)
    return Dataset(
        given["dataset_name"], given["dataset_path"], given["num_prompts"], given["seed"], given["random_input_len"],
        given["random_output_len"], given["random_range_ratio"], given["random_mm_base_items_per_request"],
        given["random_mm_bucket_config"], given[own],
    )  # fmt: skip


def run(parser: Parser, given: dict[str, Any]) -> int:
    """1 where no request was answered."""
    from sensorium.bench.arrivals import arrival_times

    limits, options = read_goodput(given["goodput"]), dataset(given)
    if given["max_concurrency"] is not None and given["max_concurrency"] < 1:
        raise ConfigError("max_concurrency must be at least 1", param="max_concurrency")
    times = arrival_times(options.num_prompts, given["request_rate"], given["burstiness"], options.seed)
    target = _target(given, options)
    counter = TokenCounter(target)
    try:
        asks = options.load(counter)
    finally:
        counter.close()
    if not counter.exact:
        parser.warn("the server has no /tokenize: prompts are sized at four characters a token")
    for ask in asks[: given["num_warmups"]]:
        (first,) = asyncio.run(send(target, [ask], [0.0]))
        if first.error is not None:
            raise SensoriumError(f"{target.url} refuses the first request: {first.error}")
    outcomes = asyncio.run(send(target, asks, times[: len(asks)], given["max_concurrency"]))
    result = {
        "url": target.url, "model": target.model, "dataset": options.name, "num_prompts": len(asks),
        "request_rate": str(given["request_rate"]), "burstiness": str(given["burstiness"]),
        "max_concurrency": given["max_concurrency"], "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }  # fmt: skip
    result |= summarise(outcomes, given["metric_percentiles"], limits)
    show(result, given["json"])
    if result["failed"]:
        print(f"{parser.prog}: {result['failed']} of {len(asks)} requests failed", file=sys.stderr)
    return 0 if result["completed"] else 1


def _target(given: dict[str, Any], options: Dataset) -> Target:
    url = given["base_url"] or f"http://{given['host']}:{given['port']}"
    media = options.name == "random-mm"
    backend = given["backend"] or ("openai-chat" if media else "openai")
    if media and backend != "openai-chat":
        raise ConfigError("backend: pictures and videos go to chat completions: --backend openai-chat", param="backend")
    key = os.environ.get("OPENAI_API_KEY", "")
    target = Target(
        url, backend, given["endpoint"], given["model"] or given["served_model"], key,
        not given["disable_ignore_eos"], given["extra_body"],
    )  # fmt: skip
    if target.model:
        return target
    return replace(target, model=asyncio.run(find_model(target)))
