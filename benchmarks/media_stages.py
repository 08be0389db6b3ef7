"""Where a picture's or sound's time goes between its bytes and the encoder's rows: MiniCPM-o 4.5's sizes, no backbone.

    python3 benchmarks/media_stages.py [--golden FOLDER] [--repeats 9]

On the CPU each stage alone, then the whole preparation, one item and many at once, as a server and as LLM do it. On a
CUDA device, if there is one, what is left to it: upload, scaling (checked against Pillow), patches, and the towers with
batches of several sizes, op by op and as graphs. Milliseconds, medians, one JSON object a line.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_check
import numpy as np
import torch
from gpu_check import FULL, GOLDEN, ROOT, report
from h200 import picture_file, sound_file
from PIL import Image

from sensorium.config import EngineConfig, MediaLimits
from sensorium.engine.checkpoint import open_processor
from sensorium.engine.graphs import ShapeGraphs
from sensorium.engine.media_options import loading_options
from sensorium.engine.prepare import Preparer
from sensorium.kernels import resample
from sensorium.kernels.upload import upload_all
from sensorium.media import wire
from sensorium.media.decode import decode
from sensorium.media.image import from_array
from sensorium.models import loader
from sensorium.models.minicpm_features import log_mels
from sensorium.models.minicpm_pixels import slice_patches
from sensorium.models.minicpm_slices import picture_arrays, plan_slices, scaled
from sensorium.models.minicpmo import Config, Model
from sensorium.models.parts.siglip import patch_inputs
from sensorium.types import ChatOptions, Media, MediaItem, MediaRef, Message

SIZES = (448, 1344)
MANY = {448: 64, 1344: 32, 0: 32}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    golden = next((f / "minicpmo45" for f in [args.golden, *GOLDEN] if f and (f / "minicpmo45").is_dir()), None)
    has_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if has_gpu else "none"
    report("machine", cores=os.cpu_count(), device=name, torch=torch.__version__)
    with tempfile.TemporaryDirectory(prefix="sensorium-stages-") as folder:
        write_folder(Path(folder), golden)
        processor = open_processor(Path(folder), FULL, EngineConfig())
        for size in SIZES:
            report(f"picture {size} x {size}, stages on one core, ms", **picture_stages(processor, size, args.repeats))
        report("10 s of sound, stages on one core, ms", **sound_stages(processor, args.repeats))
        for on_device in (False, True):
            processor.scales_on_device = on_device
            whole(processor, on_device, args.repeats)
    if has_gpu:
        with torch.inference_mode():
            on_gpu(args.repeats)
    return 0


def write_folder(folder: Path, golden: Path | None) -> None:
    """A checkpoint without weights."""
    candidates = [golden and golden / "tokenizer", ROOT / "sensorium" / "packaged" / "sensorium-tiny"]
    source = next(f for f in candidates if f and (f / "tokenizer_config.json").is_file())
    for name in (*gpu_check.TOKENIZER_FILES, "special_tokens_map.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    (folder / "config.json").write_text(json.dumps(FULL))
    settings = {"max_slice_nums": 9, "scale_resolution": 448, "use_image_id": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def median_ms(call: Callable[[], Any], repeats: int) -> float:
    """The first call warms up."""
    times = []
    for _ in range(repeats + 1):
        before = time.perf_counter()
        call()
        times.append((time.perf_counter() - before) * 1e3)
    return round(statistics.median(times[1:]), 3)


def picture_stages(processor: Any, size: int, repeats: int) -> dict[str, float]:
    data = picture_file(np.random.default_rng(size), size)
    ref = MediaRef("image", data, options=loading_options("image", {}, {}, MediaLimits()))
    media = decode(ref, MediaLimits())
    assert isinstance(media, Media)
    plan = plan_slices(size, size, 9)
    item = MediaItem("image", b"", 0, picture_arrays([(plan, scaled(media.data, plan))]))
    image = Image.open(io.BytesIO(data))
    image.load()
    found = {
        "decompress": median_ms(lambda: Image.open(io.BytesIO(data)).load(), repeats),
        "to an array": median_ms(lambda: np.array(image), repeats),
        "file to pixels, hashed": median_ms(lambda: decode(ref, MediaLimits()), repeats),
        "pixels of a caller, copied and hashed": median_ms(lambda: from_array(media.data), repeats),
        "scale by Pillow": median_ms(lambda: scaled(media.data, plan), repeats),
        "patches": median_ms(lambda: slice_patches([item], torch.device("cpu")), repeats),
    }
    for on_device in (False, True):
        processor.scales_on_device = on_device
        prepared = processor.prepare(media, {})
        where = "scaled on the device" if on_device else "scaled here"
        found[f"to another process, {where}"] = median_ms(lambda p=prepared: cross(processor, p.content), repeats)
        found[f"prepare, {where}"] = median_ms(lambda: processor.prepare(media, {}), repeats)
        messages = [Message("user", (prepared, "What is this?"))]
        found[f"prompt, {where}"] = median_ms(lambda m=messages: processor.chat(m, ChatOptions()), repeats)
    return found


def sound_stages(processor: Any, repeats: int) -> dict[str, float]:
    ref = MediaRef("audio", sound_file(np.random.default_rng(0), 10.0))
    media = decode(ref, MediaLimits())
    processor.scales_on_device = False
    prepared = processor.prepare(media, {})
    messages = [Message("user", (prepared, "What is this?"))]
    return {
        "file to samples, hashed": median_ms(lambda: decode(ref, MediaLimits()), repeats),
        "mel features": median_ms(lambda: processor.prepare(media, {}), repeats),
        "to another process": median_ms(lambda: cross(processor, prepared.content), repeats),
        "prompt": median_ms(lambda: processor.chat(messages, ChatOptions()), repeats),
    }


def cross(processor: Any, content: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=wire.send, args=(ours, content))
        sender.start()
        wire.receive(theirs, (Media, *processor.piece_types))
        sender.join()


def whole(processor: Any, on_device: bool, repeats: int) -> None:
    """Message to prompt, through the workers where media come as files."""
    rng = np.random.default_rng(1)
    kinds: dict[str, tuple[Callable[[], Any], int]] = {}
    for size in SIZES:
        kinds[f"JPEG file {size} x {size}"] = (lambda s=size: MediaRef("image", picture_file(rng, s)), MANY[size])
        kinds[f"decoded picture {size} x {size}"] = (
            lambda s=size: from_array(np.asarray(Image.open(io.BytesIO(picture_file(rng, s))))),
            MANY[size],
        )
    kinds["10 s of sound"] = (lambda: MediaRef("audio", sound_file(rng, 10.0)), MANY[0])
    preparer = Preparer(processor, ("image", "video", "audio"), EngineConfig(mm_processor_cache_gb=0.0))
    try:
        for name, (make, many) in kinds.items():
            prepare(preparer, [make() for _ in range(8)])
            alone = []
            for _ in range(repeats):
                alone.append(prepare(preparer, [make()])[0])
            together = [prepare(preparer, [make() for _ in range(many)]) for _ in range(3)]
            seconds, cpu = min(together)
            report(
                f"{name}, prepared", scaled_and_heard_on="device" if on_device else "cpu",
                one_ms=round(statistics.median(alone) * 1e3, 3), many=many, per_s=round(many / seconds, 1),
                own_cpu_ms_each=round(cpu / many * 1e3, 3),
            )  # fmt: skip
    finally:
        preparer.close()


def prepare(preparer: Preparer, items: Sequence[Any]) -> tuple[float, float]:
    """Seconds, and processor time of this process, until all prompts are there, each asked for by a thread."""

    def ask(item: Any) -> None:
        preparer.chat([Message("user", (item, "What is this?"))], ChatOptions(), here=True).result()

    with ThreadPoolExecutor(len(items)) as pool:
        used, before = time.process_time(), time.perf_counter()
        list(pool.map(ask, items))
        return time.perf_counter() - before, time.process_time() - used


# ---- on a CUDA device --------------------------------------------------------------------------------------------


def gpu_ms(call: Callable[[], Any], repeats: int) -> float:
    """Until the device is done, launches included."""

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return median_ms(run, repeats)


def on_gpu(repeats: int) -> None:
    device = torch.device("cuda")
    for size in SIZES:
        pixels = np.array(Image.open(io.BytesIO(picture_file(np.random.default_rng(size), size))))
        plan = plan_slices(size, size, 9)
        there = upload_all([pixels], device)[0]
        expected = scaled(pixels, plan)
        made = [resample.resize(there, *side) for side in (plan.overview, plan.refined) if side]
        equal = all(np.array_equal(a.cpu(), b) for a, b in zip(made, expected, strict=True))
        item = MediaItem("image", b"", 64 * plan.count, picture_arrays([(plan, (pixels,))]))
        slices = slice_patches([item], device)[0]
        report(
            f"picture {size} x {size} on the device, ms", equal_to_pillow=equal,
            upload=gpu_ms(lambda p=pixels: upload_all([p], device), repeats),
            scale=gpu_ms(lambda t=there, p=plan: resample.resize(t, *p.overview), repeats),
            scale_by_torch=gpu_ms(lambda t=there, p=plan: resample.scale_by_torch(t, p.overview[0]), repeats),
            upload_scale_and_cut=gpu_ms(lambda i=item: slice_patches([i], device), repeats),
            stack_and_normalise=gpu_ms(lambda s=slices: patch_inputs(torch.stack(s), torch.bfloat16), repeats),
        )  # fmt: skip
    photo = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)
    plan = plan_slices(4000, 3000, 9)
    made = resample.resize(upload_all([photo], device)[0], *plan.overview)
    report("12 megapixels, scaled", equal_to_pillow=np.array_equal(made.cpu(), scaled(photo, plan)[0]))
    towers(device, repeats)


def towers(device: torch.device, repeats: int) -> None:
    config = replace(Config.from_hf(FULL | {"num_hidden_layers": 1}), speech=None)
    model = loader.build(Model, config, "cuda", torch.bfloat16)
    loader.init_random_(model, seed=0)
    for count in (1, 2, 4, 8, 10, 16, 32):
        x = torch.randn(count, 1024, 588, device=device, dtype=torch.bfloat16)
        sizes = torch.full((count, 2), 32, device=device)
        measure_tower("vision", count, model.embed_slices, (x, sizes, None, None, False), repeats)
    for count in (1, 2, 4, 8, 16):
        samples, own = torch.randn(count, 160_000, device=device), torch.full((count,), 160_000, device=device)
        features = gpu_ms(lambda s=samples, n=own: log_mels(s, n), repeats)
        report("mel features of 10 s of sound on the device, ms", batch=count, features=features)
        measure_tower("features and audio", count, model.embed_sounds, (samples, own, False), repeats)
        mel = torch.randn(count, 80, 1000, device=device, dtype=torch.bfloat16)
        frames = torch.full((count,), 1000, device=device)
        measure_tower("audio", count, model.embed_clips, (mel, frames, False), repeats)


def measure_tower(name: str, count: int, encode: Callable[..., torch.Tensor], args: Any, repeats: int) -> None:
    """record: what the second call of a new shape costs, in which its graph is made."""
    eager = gpu_ms(lambda: encode(*args), repeats)
    graphs = ShapeGraphs(encode)
    graphs(*args)
    torch.cuda.synchronize()
    before = time.perf_counter()
    graphs(*args)
    torch.cuda.synchronize()
    record = (time.perf_counter() - before) * 1e3
    graph = gpu_ms(lambda: graphs(*args), repeats)
    launch = median_ms(lambda: encode(*args), 3)
    torch.cuda.synchronize()
    report(
        f"{name} tower", batch=count, op_by_op_ms=eager, launches_ms=launch, record_ms=round(record, 1), graph_ms=graph
    )


if __name__ == "__main__":
    sys.exit(main())
