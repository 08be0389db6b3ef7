"""`sensorium bench throughput`: many requests at once in this process, beside others."""

from __future__ import annotations

from typing import Any

from sensorium.bench.report import show
from sensorium.bench.shapes import OTHERS
from sensorium.cli.bench_options import add_dataset, add_engine, check_positive, configured, dataset, runs
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    add_dataset(parser.add_argument_group("requests"))
    parser.add_argument(
        "--hf-max-batch-size", type=integer, default=16, metavar="N", help="transformers: padded at once (default: 16)"
    )
    add_engine(parser, compare=OTHERS)


def run(parser: Parser, given: dict[str, Any]) -> int:
    from sensorium.bench.offline import throughput

    check_positive(given, "hf_max_batch_size")
    options, often = dataset(given), runs(given)
    with configured(given) as config:
        result = throughput(config, options, often, given["compare"], given["hf_max_batch_size"])
    show(result, given["json"])
    return 0
