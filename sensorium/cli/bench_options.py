"""Options that the commands of `sensorium bench` share, called as in `vllm bench`. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.bench.datasets import NAMES, Dataset
from sensorium.bench.shapes import SHAPES
from sensorium.cli.options import add_flags, build
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer, json_object, number
from sensorium.config import EngineConfig
from sensorium.errors import ConfigError

if TYPE_CHECKING:
    from sensorium.bench.offline import Runs


def add_engine(parser: Parser, *, compare: Sequence[str]) -> None:
    """The model, the repetitions, who is beside ours, the result, and the engine's own flags."""
    parser.add_argument("--preset", choices=tuple(SHAPES), help="random weights of a known shape in place of a model")
    parser.add_argument("--compare", nargs="+", choices=compare, default=[], help="run the same work through these")
    parser.add_argument("--num-iters", type=integer, default=3, metavar="N", help="measured runs (default: 3)")
    parser.add_argument("--num-iters-warmup", type=integer, default=1, metavar="N", help="runs before (default: 1)")
    add_json(parser)
    add_flags(parser, EngineConfig, title="engine")


@contextmanager
def configured(given: dict[str, Any]) -> Iterator[EngineConfig]:
    """The engine to measure, with its kernels compiled and the checkpoint of a preset written while inside."""
    from sensorium.bench.presets import checkpoint
    from sensorium.kernels import compiled

    compiled.prepare()
    with checkpoint(build(EngineConfig, given, model=given["model"]), given["preset"]) as config:
        yield config


def runs(given: dict[str, Any]) -> Runs:
    from sensorium.bench.offline import Runs

    check_positive(given, "num_iters")
    if given["num_iters_warmup"] < 0:
        raise ConfigError("num_iters_warmup must not be negative", param="num_iters_warmup")
    return Runs(given["num_iters_warmup"], given["num_iters"])


def check_positive(given: dict[str, Any], *names: str) -> None:
    for name in names:
        values = given[name] if isinstance(given[name], list) else [given[name]]
        for value in values:
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}", param=name)


def add_dataset(group: argparse._ActionsContainer) -> None:
    """What is asked; dataset() reads it."""
    group.add_argument("--dataset-name", choices=NAMES, default="random", help="(default: random)")
    group.add_argument("--dataset-path", type=Path, metavar="PATH", help="custom: JSON lines; sharegpt: its JSON file")
    group.add_argument("--num-prompts", type=integer, default=100, metavar="N", help="(default: 100)")
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


def add_json(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--json", "--output-json", nargs="?", const="-", metavar="FILE", help="write JSON there; with no FILE, print it"
    )


def dataset(given: dict[str, Any]) -> Dataset:
    """The dataset that add_dataset's options name, from --seed where the command has one."""
    own = "custom_output_len" if given["dataset_name"] == "custom" else "sharegpt_output_len"
    check_positive(given, "num_prompts", "random_input_len", "random_output_len", "random_mm_base_items_per_request")
    return Dataset(
        given["dataset_name"], given["dataset_path"], given["num_prompts"], given.get("seed", 0),
        given["random_input_len"], given["random_output_len"], given["random_range_ratio"],
        given["random_mm_base_items_per_request"], given["random_mm_bucket_config"], given[own],
    )  # fmt: skip
