"""What pictures, sounds and videos cost, stage by stage and until their first token; pictures beside transformers."""

from __future__ import annotations

import importlib
import io
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from sensorium.bench import roofline, synthetic
from sensorium.bench.offline import Runs
from sensorium.bench.report import spread
from sensorium.bench.roofline import Ceilings, Products, Sizes, Work, machine, synchronize
from sensorium.bench.sides import check_installed
from sensorium.config import EngineConfig
from sensorium.engine.checkpoint import resolve_folder
from sensorium.engine.client import EngineClient
from sensorium.engine.media_options import loading_options
from sensorium.errors import EngineError, UnsupportedError
from sensorium.media.decode import decode
from sensorium.types import (
    ChatOptions,
    Failed,
    Finished,
    MediaItem,
    MediaRef,
    Message,
    Modality,
    Prompt,
    SamplingParams,
)

QUESTION = "What is this?"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """Files of one sort and size."""

    modality: Modality
    name: str
    make: Callable[[np.random.Generator], bytes]

    @classmethod
    def picture(cls, width: int, height: int) -> Kind:
        return cls("image", f"picture {width}x{height}", lambda rng: synthetic.picture(rng, width, height))

    @classmethod
    def sound(cls, seconds: float) -> Kind:
        return cls("audio", f"sound {seconds:g} s", lambda rng: synthetic.sound(rng, seconds))

    @classmethod
    def video(cls, width: int, height: int, seconds: float) -> Kind:
        name = f"video {width}x{height}, {seconds:g} s"
        return cls("video", name, lambda rng: synthetic.video(rng, width, height, seconds))


def measure(config: EngineConfig, kinds: Sequence[Kind], batch: int, runs: Runs, others: Sequence[str] = ()) -> Row:
    """One row for each kind: milliseconds of every stage for one item, to its first token, and items per second.

    decode: file to samples; prepare: samples to what the model reads; encode: that to rows; prefill: the prompt once
    its rows are there. to_first_token is what a caller waits for one item, items_per_s of `batch` at once. Every item
    is new, and nothing is kept.
    """
    check_installed(others)
    config = replace(config, enable_prefix_caching=False, mm_processor_cache_gb=0.0)
    with EngineClient(config) as client:
        loaded = client.loaded
        unknown = [kind.name for kind in kinds if kind.modality not in client.modalities]
        if unknown:
            raise UnsupportedError(f"{client.model_name} takes no {unknown[0]} ({', '.join(client.modalities)})")
        ceilings = roofline.measure(loaded.device, loaded.dtype)
        bench = _Bench(client, ceilings, Sizes.of(loaded.model, loaded.dtype), runs, batch)
        rows = [bench.row(kind) for kind in kinds]
        facts = {"model": client.model_name, "dtype": client.facts.dtype, **machine(), "ceilings": ceilings.facts()}
        device, dtype = loaded.device, loaded.dtype
    for _ in others:
        rows += _beside_transformers(config, kinds, runs, device, dtype, rows)
    return facts | {"batch": batch, "rows": rows}


class _Bench:
    def __init__(self, client: EngineClient, ceilings: Ceilings, sizes: Sizes, runs: Runs, batch: int) -> None:
        self._client, self._ceilings, self._sizes = client, ceilings, sizes
        self._runs, self._batch = runs, batch
        self._device = client.loaded.device
        self._model: Any = client.loaded.model
        self._times: dict[str, list[float]] = {}

    def row(self, kind: Kind) -> Row:
        rng = np.random.default_rng(0)
        self._times = {}
        work, rows, length = Work(0, 0), 0, 0
        for run in range(self._runs.count):
            prompt, work = self._stages(self._ref(kind, rng), work)
            rows, length = sum(item.rows for item in prompt.media), len(prompt.ids)
            self._prefill(prompt)
            self._time("to_first_token", lambda: self._first_token([self._ref(kind, rng)]))
            if run < self._runs.warmup:
                self._times.clear()
        together = [self._together(kind, rng) for _ in range(self._runs.count)][self._runs.warmup :]
        found: Row = {"side": "sensorium", "media": kind.name, "rows": rows, "prompt_tokens": length}
        found |= {f"{stage}_ms": spread([value * 1e3 for value in times]) for stage, times in self._times.items()}
        encode, prefill = (statistics.median(self._times[stage]) for stage in ("encode", "prefill"))
        found["encode_roofline"] = self._ceilings.share(work, encode) if work.flops else None
        found["prefill_roofline"] = self._ceilings.share(self._sizes.prefill([length]), prefill)
        return found | {"items_per_s": spread([self._batch / seconds for seconds in together])}

    def _ref(self, kind: Kind, rng: np.random.Generator) -> MediaRef:
        return MediaRef(kind.modality, kind.make(rng))

    def _time(self, stage: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        synchronize(self._device)
        self._times.setdefault(stage, []).append(time.perf_counter() - started)
        return result

    def _stages(self, ref: MediaRef, before: Work) -> tuple[Prompt, Work]:
        """The prompt that asks about an item, and the arithmetic of its encoders: counted while they are not graphs."""
        processor, limits = self._client.processor, self._client.config.limits
        ref = replace(ref, options=loading_options(ref.modality, {}, {}, limits))
        media = self._time("decode", lambda: decode(ref, limits))
        prepared = self._time("prepare", lambda: processor.prepare(media, {}))
        prompt = processor.chat([Message("user", (prepared, QUESTION))], ChatOptions())
        with Products(self._model) as products:
            self._time("encode", lambda: self._encode(prompt.media))
        return prompt, products.work if products.flops > before.flops else before

    @torch.inference_mode()
    def _encode(self, items: Sequence[MediaItem]) -> None:
        for modality in sorted({item.modality for item in items}):
            self._model.encode(modality, [item for item in items if item.modality == modality])

    def _prefill(self, prompt: Prompt) -> None:
        """The first answer leaves the item's rows in the encoder cache; the second finds them there."""
        self._answer(prompt)
        self._times.setdefault("prefill", []).append(self._answer(prompt))

    def _answer(self, prompt: Prompt) -> float:
        """Seconds to the first token, from submitting."""
        for event in self._client.submit(prompt, SamplingParams(temperature=0.0, max_tokens=1)):
            if isinstance(event, Failed):
                raise EngineError(event.message)
            if isinstance(event, Finished):
                return event.timings.ttft_s or event.timings.total_s
        raise EngineError("a stream ended without its last event")

    def _first_token(self, refs: Sequence[MediaRef]) -> None:
        """All items at once, each in a question of its own."""

        def ask(ref: MediaRef) -> None:
            self._answer(self._client.prepare_chat([Message("user", (ref, QUESTION))]))

        with ThreadPoolExecutor(len(refs)) as pool:
            list(pool.map(ask, refs))

    def _together(self, kind: Kind, rng: np.random.Generator) -> float:
        refs = [self._ref(kind, rng) for _ in range(self._batch)]
        started = time.perf_counter()
        self._first_token(refs)
        return time.perf_counter() - started


def _beside_transformers(
    config: EngineConfig, kinds: Sequence[Kind], runs: Runs, device: torch.device, dtype: torch.dtype, ours: list[Row]
) -> Iterator[Row]:
    """Pictures through transformers' processor and model, one at a time, as its users do."""
    module = importlib.import_module("transformers")
    folder = resolve_folder(config.model, config.revision, config)
    try:
        processor = module.AutoProcessor.from_pretrained(folder)
        model = module.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device).eval()
        theirs = _Theirs(processor, model)
    except (ValueError, OSError, ImportError, KeyError, AttributeError) as error:
        raise UnsupportedError(
            f"compare: transformers cannot load {config.model or folder.name} with its own code "
            f"({' '.join(str(error).split())[:200]}); it knows LLaVA and Qwen2-VL checkpoints, for example",
            param="compare",
        ) from error
    for kind, mine in zip(kinds, list(ours), strict=True):
        if kind.modality == "image":
            times = theirs.times(kind, runs)
            row: Row = {"side": "transformers", "media": kind.name}
            row |= {f"{stage}_ms": spread([value * 1e3 for value in values]) for stage, values in times.items()}
            yield row | {"ratio": row["to_first_token_ms"]["median"] / mine["to_first_token_ms"]["median"]}


class _Theirs:
    def __init__(self, processor: Any, model: Any) -> None:
        self._processor, self._model = processor, model
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        self._text = f"{processor.image_token}\n{QUESTION}"
        if processor.chat_template is not None:
            messages = [{"role": "user", "content": content}]
            self._text = processor.apply_chat_template(messages, add_generation_prompt=True)

    @torch.inference_mode()
    def times(self, kind: Kind, runs: Runs) -> dict[str, list[float]]:
        """Seconds of each run: until the model's inputs are there, and until the first token."""
        rng, found = np.random.default_rng(0), dict[str, list[float]]()
        for run in range(runs.count):
            data = kind.make(rng)
            started = time.perf_counter()
            picture = Image.open(io.BytesIO(data)).convert("RGB")
            inputs = self._processor(text=[self._text], images=[picture], return_tensors="pt").to(self._model.device)
            prepared = time.perf_counter()
            self._model.generate(**inputs, do_sample=False, max_new_tokens=1)[0, -1].item()
            if run >= runs.warmup:
                found.setdefault("prepare", []).append(prepared - started)
                found.setdefault("to_first_token", []).append(time.perf_counter() - started)
        return found
