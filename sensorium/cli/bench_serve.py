"""`sensorium bench serve`: open-loop load on a running server, by HTTP. Flags are called as in `vllm bench serve`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from dataclasses import replace
from typing import Any

from sensorium.bench.datasets import Dataset
from sensorium.bench.http import PATHS, Target, TokenCounter, find_model
from sensorium.bench.http import run as send
from sensorium.bench.report import show
from sensorium.bench.serving import METRICS, read_goodput, summarise
from sensorium.cli.bench_options import add_dataset, add_json, dataset
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
    requests = parser.add_argument_group("requests")
    add_dataset(requests)
    requests.add_argument("--seed", type=integer, default=0, metavar="N", help="of all that is random (default: 0)")
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
