"""What a step costs beside the model: 64 sequences decode with a model of two 64-wide layers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from sensorium.bench.roofline import machine
from sensorium.config import EngineConfig
from sensorium.engine.engine import Engine
from sensorium.engine.loading import build_engine, plan_memory, tune
from sensorium.models import loader
from sensorium.models.minicpmo import Config, Model
from sensorium.types import Prompt, Request, SamplingParams

NUM_SEQUENCES, PROMPT_LEN, NUM_STEPS, WARM_UP = 64, 64, 160, 20
MODEL = {
    "model_type": "minicpmo",
    "architectures": ["MiniCPMO"],
    "version": "4.5",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 1024,
}


class ByteTokenizer:
    """A token is a letter: detokenising has something to do, and needs no file."""

    eos_ids: tuple[int, ...] = ()
    special_ids: frozenset[int] = frozenset()
    vocab_size = MODEL["vocab_size"]

    def token_bytes(self, token_id: int) -> bytes:
        return bytes((97 + token_id % 26,))


class Timed:
    """Adds up the seconds spent inside the functions it wraps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            started = time.perf_counter()
            result = call(*args)
            self.seconds += time.perf_counter() - started
            return result

        return timed


def measure_step() -> dict[str, Any]:
    """Milliseconds per step, and of those the ones outside embed, forward and logits, greedy and sampled."""
    samplings = {
        "greedy": SamplingParams(temperature=0.0, max_tokens=NUM_STEPS, ignore_eos=True),
        "top_p 0.9": SamplingParams(temperature=0.7, top_p=0.9, seed=1, max_tokens=NUM_STEPS, ignore_eos=True),
    }
    rows = [{"sampling": name} | _run(sampling) for name, sampling in samplings.items()]
    return {"sequences": NUM_SEQUENCES, "model": "2 layers x 64", **machine(), "rows": rows}


def _run(sampling: SamplingParams) -> dict[str, float]:
    model, timed = _model()
    engine = _engine(model)
    for i in range(NUM_SEQUENCES):
        ids = tuple((i * 31 + at * 7) % MODEL["vocab_size"] for at in range(PROMPT_LEN))
        engine.inbox.append(Request(str(i), Prompt(ids), sampling, arrival_s=engine.clock()))
    steps: list[tuple[float, float]] = []
    while engine.has_work:
        timed.seconds, started = 0.0, time.perf_counter()
        events = engine.step()
        if len(events) == NUM_SEQUENCES:
            steps.append((time.perf_counter() - started, timed.seconds))
    kept = steps[WARM_UP:]
    return {
        "step_ms": statistics.median(total for total, _ in kept) * 1e3,
        "model_ms": statistics.median(inside for _, inside in kept) * 1e3,
        "engine_ms": statistics.median(total - inside for total, inside in kept) * 1e3,
        "p99_step_ms": _quantile([total for total, _ in kept], 0.99) * 1e3,
    }


def _model() -> tuple[Any, Timed]:
    config = Config.from_hf(MODEL, init_vision=False, init_audio=False)
    model: Any = loader.build(Model, config, "cpu", torch.float32)
    loader.init_random_(model, seed=0, std=0.3)  # as peaked as a trained model's choices
    tune(model, torch.device("cpu"), torch.float32, EngineConfig().block_size)
    timed = Timed()
    for name in ("embed", "forward", "logits"):
        setattr(model, name, timed.wrap(getattr(model, name)))
    return model, timed


def _engine(model: Any) -> Engine:
    config = EngineConfig(device="cpu", max_num_seqs=NUM_SEQUENCES, max_num_batched_tokens=NUM_SEQUENCES * PROMPT_LEN)
    device, dtype = torch.device("cpu"), torch.float32
    processor: Any = SimpleNamespace(tokenizer=ByteTokenizer())
    return build_engine(model, processor, config, device, dtype, plan_memory(model, config, device, dtype))


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
