"""Cost per token against batch, context and pictures per request: three curves, as JSON and as a plot.

    python benchmarks/growth.py [MODEL] [--preset qwen3-8b] [--batches 1 8 64] [--contexts 1024 8192] [--pictures 1 4]
                                [--json docs/img/growth-cpu.json] [--plot docs/img/growth-cpu.png]

Sizes are those of a GPU (batches to 512, contexts to 32k, 32 pictures) unless the model or the machine is smaller: on a
CPU batches end at 64, and no context is longer than the model's. Greedy, random tokens, medians with the lowest and
highest. Beside each curve stands the roofline: what this device's bandwidth and arithmetic, measured in the same call,
allow. The plot needs matplotlib (pip install "sensorium[benchmarks]").
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sensorium.bench import roofline, synthetic
from sensorium.bench.presets import checkpoint
from sensorium.bench.report import spread
from sensorium.bench.roofline import Ceilings, Sizes, machine
from sensorium.bench.shapes import SHAPES
from sensorium.config import EngineConfig, MediaLimits
from sensorium.engine.client import EngineClient
from sensorium.engine.engine import Engine
from sensorium.engine.loading import load
from sensorium.kernels import compiled
from sensorium.types import Finished, MediaRef, Message, Prompt, Request, SamplingParams, TextDelta

BATCHES, CONTEXTS, PICTURES = [2**i for i in range(10)], [1024 * 2**i for i in range(6)], [2**i for i in range(6)]
CPU_BATCH, STEPS, WARM_UP = 64, 24, 4
ROOM = 8
"""Tokens of the context that a measurement needs beside STEPS: what the warm-up and the last step take."""
Curve = list[dict[str, Any]]


def main() -> None:
    args = _arguments()
    compiled.prepare()
    config = EngineConfig(model=args.model, load_format=args.load_format, enable_prefix_caching=False)
    with checkpoint(config, args.preset) as config:
        result = measure(config, args)
    text = json.dumps(result, indent=1)
    print(text)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(text + "\n", "utf-8")
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        plot(result, args.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--preset", choices=tuple(SHAPES))
    parser.add_argument("--load-format", default="auto", choices=("auto", "dummy"))
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--pictures", type=int, nargs="+", default=PICTURES)
    parser.add_argument("--batch-context", type=int, default=128, help="tokens each sequence of a batch begins with")
    parser.add_argument("--picture-size", type=int, default=224)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    return parser.parse_args()


def measure(config: EngineConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Decode steps in the engine itself; pictures, first, through a client and an engine that gives its memory back."""
    curves: dict[str, Curve] = {"batch": [], "context": [], "pictures": []}
    limits = MediaLimits(max_items=max(args.pictures))
    with EngineClient(replace(config, mm_processor_cache_gb=0.0, limits=limits), kind="process") as client:
        if "image" in client.modalities:
            curves["pictures"] = pictures(client, args.pictures, args.picture_size, args.repeat)
    loaded = load(replace(config, max_num_seqs=max(args.batches), init_vision=False, init_audio=False))
    engine, device = loaded.engine, loaded.device
    most = CPU_BATCH if device.type == "cpu" else max(args.batches)
    ceilings, sizes = roofline.measure(device, loaded.dtype), Sizes.of(loaded.model, loaded.dtype)
    room = min(engine.max_model_len - STEPS - ROOM, max(args.contexts))
    for batch in [batch for batch in args.batches if batch <= most]:
        curves["batch"].append({"batch": batch} | decode(engine, ceilings, sizes, batch, args.batch_context))
    contexts = [context for context in args.contexts if context <= room]
    for context in contexts or [room]:
        curves["context"].append({"context": context} | decode(engine, ceilings, sizes, 1, context))
    facts = {"model": loaded.name, "dtype": str(loaded.dtype).removeprefix("torch."), **machine()}
    facts["ceilings"] = ceilings.facts()
    return facts | {"batch_context": args.batch_context, "picture_size": args.picture_size, "curves": curves}


def decode(engine: Engine, ceilings: Ceilings, sizes: Sizes, batch: int, context: int) -> dict[str, Any]:
    """Milliseconds of a decode step and of each of its tokens, and the least time for the step."""
    rng = np.random.default_rng(batch * context)
    # The first of a batch answer while the prompts of the others are computed: all are to be there for STEPS.
    early = -(-batch * context // max(engine.scheduler.max_num_batched_tokens - batch, 1)) if batch > 1 else 0
    sampling = SamplingParams(temperature=0.0, max_tokens=STEPS + WARM_UP + early, ignore_eos=True)
    high = min(engine.runner.model.vocab_size, 100_000)
    for number in range(batch):
        prompt = Prompt(tuple(rng.integers(high // 10, high // 2, context).tolist()))
        engine.inbox.append(Request(f"{number}", prompt, sampling, arrival_s=engine.clock()))
    steps: list[float] = []
    while engine.has_work:
        started = time.perf_counter()
        events = engine.step()
        if sum(isinstance(event, TextDelta) for event in events) == batch:
            steps.append((time.perf_counter() - started) * 1e3)
    steps = steps[WARM_UP:-1]
    floor = ceilings.seconds(sizes.decode([context + STEPS // 2] * batch)) * 1e3
    return {"step_ms": spread(steps), "token_ms": spread([step / batch for step in steps]), "floor_ms": floor / batch}


def pictures(client: EngineClient, counts: Sequence[int], size: int, repeat: int) -> Curve:
    """Milliseconds to the first token of a question about several pictures, from their files on, and per picture."""
    rng = np.random.default_rng(0)
    curve: Curve = []
    for count in counts:
        times: list[float] = []
        tokens = 0
        for run in range(repeat + 1):  # the first warms up
            refs = [MediaRef("image", synthetic.picture(rng, size, size)) for _ in range(count)]
            started = time.perf_counter()
            prompt = client.prepare_chat([Message("user", (*refs, "What is this?"))])
            tokens = len(prompt.ids)
            if tokens > client.max_model_len - 2:
                return curve
            events = list(client.submit(prompt, SamplingParams(temperature=0.0, max_tokens=1)))
            assert isinstance(events[-1], Finished), events[-1]
            if run:
                times.append((time.perf_counter() - started) * 1e3)
        each = spread([value / count for value in times])
        curve.append({"pictures": count, "prompt_tokens": tokens, "first_token_ms": spread(times), "picture_ms": each})
    return curve


def plot(result: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = (
        ("batch", "token_ms", "ms per token", "sequences in a step"),
        ("context", "token_ms", "ms per token", "tokens of context, one sequence"),
        ("pictures", "picture_ms", "ms per picture", "pictures in a request"),
    )
    drawn = [panel for panel in panels if result["curves"][panel[0]]]
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(4.2 * len(drawn), 3.4), squeeze=False)
    for axis, (name, figure_of, unit, about) in zip(axes[0], drawn, strict=True):
        curve = result["curves"][name]
        x, values = [point[name] for point in curve], [point[figure_of] for point in curve]
        axis.fill_between(x, [v["lowest"] for v in values], [v["highest"] for v in values], color="#9ecae1", alpha=0.6)
        axis.plot(x, [v["median"] for v in values], marker="o", color="#08519c", label="median, lowest to highest")
        if all("floor_ms" in point for point in curve):
            axis.plot(x, [point["floor_ms"] for point in curve], "--", color="#777777", label="roofline")
        axis.set_xscale("log", base=2)
        axis.set_xticks(x, [f"{value / 1024:.3g}k" if value >= 1024 else str(value) for value in x])
        axis.set_xlabel(about)
        axis.set_ylabel(unit)
        if name == "batch":
            axis.set_yscale("log")
        else:
            # The highest may be a first time, in which graphs are recorded.
            axis.set_ylim(0, 1.2 * max(v["median"] for v in values))
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{Path(result['model']).name}, {result['dtype']}, {result['device']}", fontsize=10)
    figure.tight_layout()
    drawing = io.BytesIO()
    figure.savefig(drawing, dpi=110)
    Image.open(drawing).convert("RGB").quantize(64).save(file, "PNG", optimize=True)  # a quarter of the bytes


if __name__ == "__main__":
    main()
