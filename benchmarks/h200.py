"""MiniCPM-o 4.5 at full size with random weights on one GPU: the table of docs/performance.md in one call.

    python3 benchmarks/h200.py [--golden FOLDER] [--only decode,prefill,media,memory,check]

Greedy, bfloat16. Every figure is a median over repetitions, with the lowest and highest beside it, of what a caller
waits: the wall clock around engine steps (text) or around prepare and submit (media), host time included. Two figures
are seconds of loading, before a kernel was compiled and with all of them kept. At the end the reference
cases are answered (check), as in gpu_check.py.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import gpu_check
import numpy as np
import torch
from gpu_check import GOLDEN, H200_BYTES_PER_S, RATE, report
from PIL import Image

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
from sensorium.engine.engine import Engine
from sensorium.engine.loading import load
from sensorium.media.image import from_array
from sensorium.types import Finished, Media, MediaRef, Message, Prompt, Request, SamplingParams, TextDelta

BACKBONE = 8.19e9 - 151748 * 4096
"""Parameters that a step multiplies with: those of the backbone but for the embedding table."""
MATMUL_FLOPS = 792e12
KV_BYTES = 36 * 2 * 8 * 128 * 2
_REST_S = 4.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--only", default="decode,prefill,media,check")
    args = parser.parse_args()
    parts = args.only.split(",")
    golden = next((f / "minicpmo45" for f in [args.golden, *GOLDEN] if f and (f / "minicpmo45").is_dir()), None)
    cases = next((f / "minicpmo45" for f in [args.golden, *GOLDEN] if f and (f / "minicpmo45" / "chat").is_dir()), None)
    report("machine", device=torch.cuda.get_device_name(), torch=torch.__version__)
    with tempfile.TemporaryDirectory(dir=gpu_check.roomiest(), prefix="sensorium-full-") as name:
        gpu_check.write_checkpoint(Path(name), golden, "cuda")
        config = EngineConfig(
            model=name, device="cuda", dtype="bfloat16", max_model_len=40960, max_num_seqs=256,
            max_num_batched_tokens=8192, kv_cache_bytes=40 << 30,
        )  # fmt: skip
        if "decode" in parts or "prefill" in parts:
            started = time.perf_counter()
            loaded = load(config)
            report("load", seconds=time.perf_counter() - started, phases=loaded.seconds)
            if "decode" in parts:
                for batch, context in ((1, 128), (8, 128), (32, 128), (128, 128), (256, 512), (1, 4096)):
                    decode(loaded.engine, batch, context)
            if "prefill" in parts:
                for count, length in ((1, 128), (1, 4096), (256, 512)):
                    prefill(loaded.engine, count, length)
            gpu_check.free(loaded)
            del loaded
        if "media" in parts:
            media(config)
        if "memory" in parts:
            memory(replace(config, kv_cache_bytes=None, gpu_memory_utilization=0.9))
    if "check" in parts and cases is not None:
        for dtype in ("float32", "bfloat16"):
            gpu_check.check_golden(cases, "cuda", dtype)
    return 0


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def random_prompt(rng: np.random.Generator, length: int) -> Prompt:
    return Prompt(tuple(rng.integers(1000, 100_000, length).tolist()))


def start(engine: Engine, prompts: Sequence[Prompt], max_tokens: int) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        engine.inbox.append(Request(f"{i}", prompt, sampling, arrival_s=engine.clock()))


def decode(engine: Engine, batch: int, context: int, num_tokens: int = 48) -> None:
    rng = np.random.default_rng(batch * context)
    start(engine, [random_prompt(rng, context) for _ in range(batch)], num_tokens)
    steps: list[float] = []
    while engine.has_work:
        before = time.perf_counter()
        events = engine.step()
        if sum(isinstance(event, TextDelta) for event in events) == batch:
            steps.append(time.perf_counter() - before)
    steps = steps[4:-1]
    bytes_read = 2 * BACKBONE + batch * context * KV_BYTES
    floor = max(bytes_read / H200_BYTES_PER_S, 2 * BACKBONE * batch / MATMUL_FLOPS)
    report(
        "decode step", batch=batch, context=context, ms={k: v * 1e3 for k, v in spread(steps).items()},
        floor_ms=floor * 1e3, share_of_floor=floor / statistics.median(steps),
    )  # fmt: skip


def prefill(engine: Engine, count: int, length: int) -> None:
    """Until the first tokens of all prompts."""
    times = []
    for repeat in range(2 if count > 1 else 6):
        rng = np.random.default_rng(repeat)
        prompts = [random_prompt(rng, length) for _ in range(count)]
        torch.cuda.synchronize()
        before = time.perf_counter()
        start(engine, prompts, 1)
        while engine.has_work:
            engine.step()
        times.append(time.perf_counter() - before)
    layers = 2 * (BACKBONE - 151748 * 4096) * count * length
    floor = (layers + 36 * 2 * count * length**2 * 4096) / MATMUL_FLOPS
    times = times[1:]
    report(
        "prefill", prompts=count, tokens=length, ms={k: v * 1e3 for k, v in spread(times).items()},
        floor_ms=floor * 1e3, share_of_floor=floor / statistics.median(times),
    )  # fmt: skip


def picture_file(rng: np.random.Generator, size: int) -> bytes:
    """A JPEG with detail at every scale."""
    small = Image.fromarray(rng.integers(0, 256, (size // 16, size // 16, 3), dtype=np.uint8)).resize((size, size))
    noise = rng.integers(-12, 13, (size, size, 3))
    pixels = np.clip(np.asarray(small).astype(np.int16) + noise, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def sound_file(rng: np.random.Generator, seconds: float) -> bytes:
    import wave

    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((rng.standard_normal(int(seconds * RATE)) * 3000).astype("<i2").tobytes())
    return out.getvalue()


@cache
def one_file(size: int) -> bytes:
    return picture_file(np.random.default_rng(size), size)


@cache
def one_picture(size: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(one_file(size))))


def picture(rng: np.random.Generator, size: int) -> MediaRef:
    """Never the same file twice: what stands behind the end of a picture is not read, only hashed."""
    return MediaRef("image", one_file(size) + rng.bytes(16))


def pixels(rng: np.random.Generator, size: int) -> Media:
    """Never the same picture twice."""
    own = one_picture(size).copy()
    own[0, :8] = rng.integers(0, 256, (8, 3), dtype=np.uint8)
    return from_array(own)


KINDS: dict[str, tuple[Callable[[np.random.Generator], MediaRef | Media], int]] = {
    "JPEG file 448 x 448": (lambda rng: picture(rng, 448), 64),
    "decoded picture 448 x 448": (lambda rng: pixels(rng, 448), 64),
    "JPEG file 1344 x 1344": (lambda rng: picture(rng, 1344), 32),
    "decoded picture 1344 x 1344": (lambda rng: pixels(rng, 1344), 32),
    "10 s of sound": (lambda rng: MediaRef("audio", sound_file(rng, 10.0)), 32),
}


def media(config: EngineConfig) -> None:
    started = time.perf_counter()
    with EngineClient(config) as client:
        report("load again, compiled kernels kept", seconds=time.perf_counter() - started)
        for name, (make, many) in KINDS.items():
            rng = np.random.default_rng(many)
            for count in (1, 1, 1, many, many, many, many):  # compiles what it needs
                first(client, [make(rng) for _ in range(count)])
            time.sleep(_REST_S)  # sizes that came twice are recorded
            alone = [first(client, [make(rng)]) for _ in range(7)]
            report(f"{name}, to first token", ms={k: v * 1e3 for k, v in spread(alone).items()})
            together = [first(client, [make(rng) for _ in range(many)]) for _ in range(5)]
            report(f"{many} x {name}", per_s=many / statistics.median(together), seconds=spread(together))


def memory(config: EngineConfig) -> None:
    """The share of the device's memory in use, after what takes most: full steps, full batches, the largest media."""
    rng = np.random.default_rng(0)
    with EngineClient(config) as client:
        report("memory", when="ready", share_in_use=in_use(), planned=config.gpu_memory_utilization)
        sampling = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)
        streams = [client.submit(random_prompt(rng, 512), sampling) for _ in range(config.max_num_seqs)]
        assert all(isinstance(list(stream)[-1], Finished) for stream in streams)
        report("memory", when="256 x 512 prompts answered", share_in_use=in_use())
        first(client, [pixels(rng, 1344) for _ in range(16)])
        first(client, [MediaRef("audio", sound_file(rng, 30.0)) for _ in range(16)])
        report("memory", when="16 pictures of ten slices and 16 sounds of 30 s answered", share_in_use=in_use())


def in_use() -> float:
    free, total = torch.cuda.mem_get_info()
    return 1 - free / total


def first(client: EngineClient, items: Sequence[MediaRef | Media]) -> float:
    """Seconds until a question about each item has its first token; threads that are there hand all over at once."""
    ready = threading.Barrier(len(items) + 1)

    def answer(item: MediaRef | Media) -> None:
        prompt = client.prepare_chat([Message("user", (item, "What is this?"))])
        stream = client.submit(prompt, SamplingParams(temperature=0.0, max_tokens=1))
        assert any(isinstance(event, Finished) for event in stream)

    with ThreadPoolExecutor(len(items)) as pool:
        waiting = [pool.submit(ready.wait) for _ in items]
        ready.wait()
        for thread in waiting:
            thread.result()
        before = time.perf_counter()
        list(pool.map(answer, items))
        return time.perf_counter() - before


if __name__ == "__main__":
    sys.exit(main())
