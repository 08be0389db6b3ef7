"""`sensorium bench media`: pictures, sounds and videos of chosen sizes in this process, stage by stage."""

from __future__ import annotations

import argparse
import re
from typing import Any

from sensorium.bench.report import show
from sensorium.cli.bench_options import add_engine, check_positive, configured, runs
from sensorium.cli.parser import Parser
from sensorium.cli.values import integer, number


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT, or one number for a square."""
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if not found:
        raise argparse.ArgumentTypeError(f"invalid size: {text!r}; write 448 or 640x480")
    return int(found[1]), int(found[2] or found[1])


def length(text: str) -> float:
    """Seconds, above 0."""
    seconds = number(text)
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"invalid length: {text!r}; write seconds above 0")
    return seconds


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    parser.add_argument("--image-size", type=size, nargs="+", default=[], metavar="WxH", help="pictures of these sizes")
    parser.add_argument("--audio-len", type=length, nargs="+", default=[], metavar="S", help="sounds of these lengths")
    parser.add_argument("--video-len", type=length, nargs="+", default=[], metavar="S", help="videos of these lengths")
    parser.add_argument("--video-size", type=size, default=(320, 240), metavar="WxH", help="(default: 320x240)")
    parser.add_argument("--batch-size", type=integer, default=8, metavar="N", help="items at once (default: 8)")
    add_engine(parser, compare=["transformers"])


def run(parser: Parser, given: dict[str, Any]) -> int:
    """Without any size, a picture of 448 x 448."""
    from sensorium.bench.media import Kind, measure

    check_positive(given, "batch_size")
    often = runs(given)
    kinds = [Kind.picture(width, height) for width, height in given["image_size"]]
    kinds += [Kind.sound(seconds) for seconds in given["audio_len"]]
    width, height = given["video_size"]
    kinds += [Kind.video(width, height, seconds) for seconds in given["video_len"]]
    with configured(given) as config:
        result = measure(config, kinds or [Kind.picture(448, 448)], given["batch_size"], often, given["compare"])
    show(result, given["json"])
    return 0
