"""`sensorium inspect`: the modules of a checkpoint with types and shapes, and memory by part. No weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sensorium.cli.parser import Parser
from sensorium.cli.values import integer
from sensorium.engine.checkpoint import PACKAGED_MODEL, resolve_folder


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    parser.add_argument("--depth", type=integer, metavar="N", help="levels of the tree to show; by default all")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", metavar="FILE", help="write JSON to a file instead")


def run(parser: Parser, given: dict[str, Any]) -> int:
    from sensorium.inspect import inspect

    model = given["model"]
    report = inspect(resolve_folder(model) if model in ("", PACKAGED_MODEL) else model)
    text = json.dumps(report.json(), indent=1, ensure_ascii=False)
    if given["output"] is not None:
        Path(given["output"]).write_text(text + "\n", "utf-8")
    elif given["json"]:
        print(text)
    else:
        print(report.text(given["depth"]))
    return 0
