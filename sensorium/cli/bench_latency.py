"""`sensorium bench latency`: batches of random prompts in this process, beside others."""

from __future__ import annotations

from typing import Any

from sensorium.bench.report import show
from sensorium.bench.shapes import OTHERS
from sensorium.cli.bench_options import add_engine, check_positive, configured, runs
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    parser.add_argument("--input-len", type=integer, default=32, metavar="N", help="prompt tokens (default: 32)")
    parser.add_argument("--output-len", type=integer, default=128, metavar="N", help="new tokens (default: 128)")
    parser.add_argument(
        "--batch-size", type=integer, nargs="+", default=[8], metavar="N", help="sequences at once (default: 8)"
    )
    add_engine(parser, compare=OTHERS)


def run(parser: Parser, given: dict[str, Any]) -> int:
    from sensorium.bench.offline import latency

    check_positive(given, "input_len", "output_len", "batch_size")
    often = runs(given)
    with configured(given) as config:
        result = latency(config, given["batch_size"], given["input_len"], given["output_len"], often, given["compare"])
    show(result, given["json"])
    return 0
