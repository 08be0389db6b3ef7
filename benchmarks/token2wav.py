"""The codec with random weights: real-time factor and memory of batched streams.

    python3 benchmarks/token2wav.py [--sizes full] [--batches 1,4,16,64] [--timesteps 10] [--dtype float32] [--voices 1]

Each stream speaks one piece of 25 codes (1 s) per call, after a voice of --voice-s seconds, with its past as long as it
gets. Prints one JSON object a line, and writes them to $OUT/token2wav.jsonl where OUT is set. `ms` is the median of the
calls; `rtf` is that over the seconds of sound made; `flow_ms` and `vocoder_ms` are its parts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from sensorium.bench.codec import FULL, SMALL, random_parts, random_voice
from sensorium.models.token2wav import Token2Wav, Voice
from sensorium.models.token2wav.steps import finish

SIZES = {"full": FULL, "small": SMALL}
PIECE = list(range(100, 128))


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", choices=SIZES, default="full" if cuda else "small")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64" if cuda else "1,4")
    parser.add_argument("--timesteps", type=int, default=10)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kind", choices=("original", "causal"), default="causal")
    parser.add_argument("--trimming", choices=("reference", "voice", "packed"), default="voice")
    parser.add_argument("--voice-s", type=float, default=5.0)
    parser.add_argument("--voices", type=int, default=1, help="how many voices the streams share")
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--tf32", action="store_true", help="products of float32 in TensorFloat-32")
    parser.add_argument("--graphs", action="store_true", help="pieces of the flow as CUDA graphs")
    args = parser.parse_args()
    if args.tf32:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    device = "cuda" if cuda else "cpu"
    report("settings", device=torch.cuda.get_device_name() if cuda else device, torch=torch.__version__, **vars(args))
    sizes = SIZES[args.sizes]
    parts = random_parts(
        sizes, args.kind, args.timesteps, device, getattr(torch, args.dtype), args.trimming, args.graphs
    )
    codec = Token2Wav(parts)
    voices = [Voice(random_voice(sizes, args.voice_s, seed)) for seed in range(args.voices)]
    batches = [int(batch) for batch in args.batches.split(",")]
    codec.reserve(max(batches), args.voices, args.voice_s)
    for batch in batches:
        report("streams", **measure(codec, voices, batch, args.calls, args.voice_s))


def measure(codec: Token2Wav, voices: list[Voice], batch: int, calls: int, voice_s: float) -> dict[str, Any]:
    streams = [codec.open(voices[i % len(voices)]) for i in range(batch)]
    works = [(stream, PIECE, False) for stream in streams]
    # Until no past grows any more.
    for _ in range(int(max(voice_s, 2)) + 3):
        codec.stream(works)
    whole, flow = [], []
    for _ in range(calls):
        started = now()
        codec.stream(works)
        whole.append(now() - started)
    for _ in range(calls):
        started = now()
        finish(codec.flow.chunk([stream.flow for stream in streams], [PIECE] * batch, last=False))
        flow.append(now() - started)
    ms, flow_ms = (1000 * statistics.median(times) for times in (whole, flow))
    state = codec.flow.state.bytes_used
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {
        "batch": batch,
        "ms": round(ms, 2),
        "flow_ms": round(flow_ms, 2),
        "vocoder_ms": round(ms - flow_ms, 2),
        "rtf": round(ms / 1000 / batch, 5),
        "state_mib": round(state / 2**20, 1),
        "state_mib_per_stream": round(state / 2**20 / batch, 1),
        "peak_mib": peak and round(peak / 2**20),
    }


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def report(what: str, /, **fields: Any) -> None:
    line = json.dumps({"line": what, **fields})
    print(line, flush=True)
    if folder := os.environ.get("OUT"):
        with (Path(folder) / "token2wav.jsonl").open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
