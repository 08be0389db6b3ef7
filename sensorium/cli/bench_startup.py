"""`sensorium bench startup`: from nothing to ready, and to the first token."""

from __future__ import annotations

from typing import Any

from sensorium.bench.report import show
from sensorium.cli.bench_options import add_json, configured, runs
from sensorium.cli.options import add_flags
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer
from sensorium.config import EngineConfig


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    parser.add_argument("--num-iters", type=integer, default=3, metavar="N", help="measured starts (default: 3)")
    parser.add_argument(
        "--num-iters-warmup",
        type=integer,
        default=1,
        metavar="N",
        help="starts before; 0 measures a cold one (default: 1)",
    )
    add_json(parser)
    add_flags(parser, EngineConfig, title="engine")


def run(parser: Parser, given: dict[str, Any]) -> int:
    from sensorium.bench.startup import measure_start

    often = runs(given)
    with configured({**given, "preset": None}) as config:
        show(measure_start(config, often), given["json"])
    return 0
