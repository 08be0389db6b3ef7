"""`sensorium complete`: one prompt in the model's own notation, continued."""

from __future__ import annotations

import sys
from typing import Any

from sensorium.cli.chat import choose_backend
from sensorium.cli.options import add_flags
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer, number
from sensorium.config import EngineConfig


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    parser.add_argument("--prompt", metavar="TEXT", help="what to continue; by default what comes on stdin")
    parser.add_argument("--url", help="ask a server instead, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="", metavar="TEXT", help="key for --url; else SENSORIUM_API_KEY")
    parser.add_argument("--temperature", type=number, metavar="X", help="0 takes the likeliest token")
    parser.add_argument("--top-p", type=number, metavar="X", help="share of the likeliest tokens to draw from")
    parser.add_argument("--max-tokens", type=integer, default=512, metavar="N", help="longest continuation")
    add_flags(parser, EngineConfig, title="engine, without --url")


def run(parser: Parser, given: dict[str, Any]) -> int:
    prompt = sys.stdin.read() if given["prompt"] is None else given["prompt"]
    with choose_backend(given) as backend:
        for piece in backend.complete(prompt):
            print(piece, end="", flush=True)
    print()
    return 0
