"""`sensorium bench`: latency and throughput of a model in this process, the engine's own cost, and a comparison."""

from __future__ import annotations

import json
from typing import Any

from sensorium.bench.shapes import SHAPES
from sensorium.cli.options import add_flags, build
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer
from sensorium.config import EngineConfig


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--engine-step", action="store_true", help="the engine's own cost per step")
    what.add_argument("--transformers", action="store_true", help="the model's decoder beside transformers' generate")
    parser.add_argument("--preset", choices=tuple(SHAPES), help="random weights of a known shape in place of a model")
    parser.add_argument(
        "--transformers-dtype", choices=("float32", "bfloat16"), default="float32", help="what transformers computes in"
    )
    parser.add_argument("--batch", type=integer, nargs="+", default=[1, 16], metavar="N", help="sequences at once")
    parser.add_argument("--prompt-len", type=integer, default=128, metavar="N", help="tokens per prompt")
    parser.add_argument("--num-tokens", type=integer, default=128, metavar="N", help="tokens generated per prompt")
    parser.add_argument("--repeat", type=integer, default=3, metavar="N", help="runs, of which the median counts")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_flags(parser, EngineConfig, title="engine, without --engine-step")


def run(parser: Parser, given: dict[str, Any]) -> int:
    from sensorium.bench.report import table

    result = _measure(given)
    print(json.dumps(result, indent=1) if given["json"] else table(result))
    return 0


def _measure(given: dict[str, Any]) -> dict[str, Any]:
    from sensorium.bench.presets import checkpoint
    from sensorium.kernels import compiled

    compiled.prepare()
    shape = [given[name] for name in ("batch", "prompt_len", "num_tokens", "repeat")]
    if given["engine_step"]:
        from sensorium.bench.step import measure_step

        return measure_step()
    with checkpoint(build(EngineConfig, given, model=given["model"]), given["preset"]) as config:
        if given["transformers"]:
            from sensorium.bench.transformers import compare

            return compare(config, *shape, dtype=given["transformers_dtype"])
        from sensorium.bench.model import measure_model

        return measure_model(config, *shape)
