"""Codes a second of the speech LM by number of slots, with random weights, and how near that is to the memory's limit.

    python benchmarks/speech_stage.py [--size small|full] [--device cuda] [--slots 1,8,64] [--context 400] [--eager]

Full-duplex units: each slot speaks --context tokens once, then 4 tokens and a second of sound per unit. A unit's time
is what a caller waits for all slots together. `share` compares the bytes that the rounds must read (weights once, every
slot's keys and values) with what the device copies in that time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from sensorium.engine.loading import fuse, pick_device, pick_dtype
from sensorium.engine.speech import CODES_PER_S, SpeechStage
from sensorium.engine.speech_rules import RULES, SpeechWork
from sensorium.kernels import compiled
from sensorium.models import loader
from sensorium.models.minicpm_speech import SpeechLM
from sensorium.models.minicpm_speech_config import SpeechConfig

RELEASED = {
    "llm_dim": 4096, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 20, "num_attention_heads": 12,
    "num_key_value_heads": 12, "max_position_embeddings": 4096, "num_audio_tokens": 6562, "num_text_tokens": 152064,
    "audio_bos_token_id": 151687, "text_eos_token_id": 151692, "projector_type": "mlp",
    "condition_type": "hidden_text_merge", "normalize_projected_hidden": True, "attention_type": "full_attention",
    "audio_tokenizer_type": "s3tokenizer",
}  # fmt: skip
SMALL = RELEASED | {
    "llm_dim": 384, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "num_text_tokens": 8192, "audio_bos_token_id": 8000, "text_eos_token_id": 8001,
    "max_position_embeddings": 1024,
}  # fmt: skip
WARM_UP, TEXT_TOKENS = 2, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("small", "full"), help="small on a CPU, else full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--slots", default="1,2,4,8,16,32,64")
    parser.add_argument("--context", type=int, default=400, help="rows before the measured units")
    parser.add_argument("--units", type=int, default=8)
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    args = parser.parse_args()
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device, {})
    size = args.size or ("small" if device.type == "cpu" else "full")
    config = SpeechConfig.from_hf(SMALL if size == "small" else RELEASED)
    model = loader.build(SpeechLM, config, device, dtype)
    loader.init_random_(model, seed=0)
    compiled.prepare()
    fuse(model, device, dtype, 16)
    bandwidth = copied_per_s(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(json.dumps({"device": name, "dtype": str(dtype), "size": size, "copy_gb_per_s": round(bandwidth / 1e9, 1)}))
    for count in map(int, args.slots.split(",")):
        print(json.dumps(measure(model, count, args, bandwidth)), flush=True)


def measure(model: SpeechLM, count: int, args: argparse.Namespace, bandwidth: float) -> dict[str, float]:
    """Units of `count` slots that speak at once."""
    units = args.units + WARM_UP
    needed = args.context + 2 + (units + 1) * (TEXT_TOKENS + 1 + RULES["duplex"].max_new)
    stage = SpeechStage(model, count, max_len=min(needed, model.max_len))
    if not args.eager:
        stage.record_graphs()
    slots = [stage.open("duplex") for _ in range(count)]
    speak(stage, slots, args.context)
    for _ in range(WARM_UP):
        speak(stage, slots, TEXT_TOKENS)
    rows = args.context + CODES_PER_S * (WARM_UP + 1) + (TEXT_TOKENS + 1) * WARM_UP
    times = [speak(stage, slots, TEXT_TOKENS) for _ in range(args.units)]
    rows += (CODES_PER_S + TEXT_TOKENS + 1) * args.units // 2
    unit_s = statistics.median(times)
    row = stage.slot_bytes(model, stage.dtype) / model.max_len
    read = RULES["duplex"].max_new * (round_weights(model) + count * rows * row)
    return {
        "slots": count,
        "unit_ms": round(unit_s * 1e3, 2),
        "round_ms": round(unit_s * 1e3 / RULES["duplex"].max_new, 3),
        "codes_per_s": round(count * CODES_PER_S / unit_s),
        "rtf": round(unit_s, 4),
        "kv_rows": rows,
        "share": round(read / unit_s / bandwidth, 3),
    }


def speak(stage: SpeechStage, slots: list[int], tokens: int) -> float:
    """One unit of all slots, in seconds."""
    hidden = torch.randn(tokens, stage.model.config.llm_dim, device=stage.device, dtype=stage.dtype)
    works = [SpeechWork(slot, range(tokens), hidden, last=False, min_new=RULES["duplex"].max_new) for slot in slots]
    started = time.perf_counter()
    codes = stage.speak(works)
    elapsed = time.perf_counter() - started
    assert all(len(one) == CODES_PER_S for one in codes)
    return elapsed


def round_weights(model: SpeechLM) -> int:
    """Bytes of the weights that a round multiplies with: all but the two tables and the projector."""
    used = sum(p.numel() * p.element_size() for p in model.decoder.parameters())
    return used - model.decoder.embedding.weight.nbytes


def copied_per_s(device: torch.device) -> float:
    """Bytes read and written a second by a plain copy, the best of several."""
    source = torch.zeros((1 << 30 if device.type == "cuda" else 1 << 27) // 4, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * source.nbytes / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    main()
