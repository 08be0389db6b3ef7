"""One CUDA device checked in minutes: parity with the reference data, then a full-size random MiniCPM-o 4.5.

    python3 benchmarks/gpu_check.py [--golden FOLDER] [--skip-full]

Needs a checkout, torch, numpy, safetensors, tokenizers, jinja2 and pillow; sensorium itself need not be installed.
Prints one JSON object a line, and writes them to $OUT/gpu_check.jsonl where OUT is set.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

from sensorium.config import EngineConfig
from sensorium.engine.loading import Loaded, load
from sensorium.kernels.reference import PackedPlan
from sensorium.kernels.select import paged_attention
from sensorium.models import loader
from sensorium.models.minicpmo import Config, Model
from sensorium.types import (
    ChatOptions,
    Finished,
    Media,
    Message,
    ModelInputs,
    Prompt,
    Request,
    SamplingParams,
    TextDelta,
)

GOLDEN = [ROOT / "training" / "work" / "golden", ROOT.parent / "shared" / "golden", ROOT / "tests" / "golden"]
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "added_tokens.json")
PROCESSOR_FILES = (
    "special_tokens_map.json",
    "preprocessor_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
H200_BYTES_PER_S = 4.05e12
RATE = 16000
# Reference cases that are no plain greedy chat: a beam search, and one padded batch.
OTHER_CASES = ("beam3", "batch3")

# MiniCPM-o 4.5's sizes.
FULL = {
    "model_type": "minicpmo",
    "architectures": ["MiniCPMO"],
    "version": "4.5",
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151748,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "query_num": 64,
    "drop_vision_last_layer": False,
    "use_image_id": True,
    "slice_config": {"patch_size": 14, "max_slice_nums": 9, "scale_resolution": 448},
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
    "audio_config": {
        "d_model": 1024,
        "encoder_layers": 24,
        "encoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "num_mel_bins": 80,
        "max_source_positions": 1500,
    },
    "audio_pool_step": 5,
    "audio_chunk_length": 1.0,
    "stream_input": True,
    "torch_dtype": "bfloat16",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, help="folder that holds minicpmo45/")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--skip-full", action="store_true", help="only the parity part")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device here", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    report("machine", device=name, torch=torch.__version__, python=sys.version.split()[0])
    folder = next((f / "minicpmo45" for f in [args.golden, *GOLDEN] if f and (f / "minicpmo45").is_dir()), None)
    if folder is None:
        report("golden", skipped="no reference data beside or inside this checkout")
    else:
        for dtype in ("float32", "bfloat16"):
            check_golden(folder, args.device, dtype)
    if not args.skip_full:
        check_full(folder, args.device)
    return 0


def report(what: str, **values: object) -> None:
    line = json.dumps({"check": what} | values)
    print(line, flush=True)
    if out := os.environ.get("OUT"):
        with (Path(out) / "gpu_check.jsonl").open("a") as file:
            file.write(line + "\n")


# ---- parity --------------------------------------------------------------------------------------------------------


def check_golden(golden: Path, device: str, dtype: str) -> None:
    """Every greedy chat case: prompt ids, logits of the model's own pass, and tokens of the engine's steps."""
    loaded = load(EngineConfig(model=str(golden / "tiny"), device=device, dtype=dtype, max_model_len=2048))
    stored = load_file(golden / "chat" / "chat.safetensors")
    waves = read_waves(golden)
    ids_equal = tokens_equal = count = 0
    errors: dict[str, float] = {}
    for case in json.loads((golden / "chat" / "chat.json").read_text("utf-8"))["cases"]:
        if case["name"] in OTHER_CASES:
            continue
        count += 1
        prompt = chat_prompt(loaded, case, golden, waves)
        ids_equal += list(prompt.ids) == case["input_ids"]
        logits = teacher_forced(loaded, prompt, case["generated_ids"])
        want = np.concatenate([stored[f"{case['name']}.last_logits"][None], stored[f"{case['name']}.step_logits"][1:]])
        errors[case["name"]] = relative(logits, want)
        penalty = case["generation_kwargs"]["repetition_penalty"]
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=case["generation_kwargs"]["max_new_tokens"],
            repetition_penalty=penalty,
            penalize_prompt=False,
        )
        tokens_equal += run_all(loaded, [prompt], sampling)[0]["ids"] == case["generated_ids"]
    report(
        "golden",
        dtype=dtype,
        cases=count,
        prompt_ids_equal=ids_equal,
        greedy_tokens_equal=tokens_equal,
        logits_median_relative_error=statistics.median(errors.values()),
        logits_worst=max((error, name) for name, error in errors.items()),
        # The core in tests/golden has conversations only.
        encoders=check_encoders(loaded, golden, waves) if (golden / "vision").is_dir() else None,
    )
    free(loaded)


def read_waves(golden: Path) -> dict[str, np.ndarray]:
    """float32 waves by name. The longest is stored as its period and length."""
    stored = load_file(golden / "audio" / "waveforms_int16.safetensors")
    waves = {name: wave.astype(np.float32) / 32768 for name, wave in stored.items()}
    waves["wave_31.0s"] = np.resize(waves["wave_7.3s"], 31 * RATE)
    return waves


def chat_prompt(loaded: Loaded, case: dict, golden: Path, waves: dict[str, np.ndarray]) -> Prompt:
    kwargs = dict(case["chat_kwargs"])
    media_kwargs = {key: kwargs[key] for key in ("max_slice_nums", "use_image_id", "omni_mode") if key in kwargs}
    template_kwargs = {"enable_thinking": kwargs.get("enable_thinking", False)}
    template_kwargs |= {key: kwargs[key] for key in ("use_tts_template",) if key in kwargs}
    messages = [
        Message(message["role"], tuple(part_of(part, golden, waves) for part in message["content"]))
        for message in case["messages"]
    ]
    return loaded.processor.chat(messages, ChatOptions(template_kwargs=template_kwargs, media_kwargs=media_kwargs))


def part_of(part: dict, golden: Path, waves: dict[str, np.ndarray]) -> str | Media:
    if "text" in part:
        return part["text"]
    if "image" in part:
        return picture(np.asarray(Image.open(golden / "images" / f"{part['image']}.png").convert("RGB")))
    return sound(waves[part["audio"]["wave"]][part["audio"]["start"] : part["audio"]["end"]])


def picture(pixels: np.ndarray) -> Media:
    return Media("image", pixels, repr(("image", pixels.shape, pixels[::7, ::7].tobytes())).encode())


def sound(samples: np.ndarray) -> Media:
    return Media("audio", samples, repr(("audio", samples.shape, samples.tobytes())).encode(), rate=RATE)


@torch.inference_mode()
def teacher_forced(loaded: Loaded, prompt: Prompt, answer: list[int]) -> np.ndarray:
    """Logits [T, V] at the last prompt position and after each given token but the last, in one pass with no cache."""
    model = loaded.model
    x = model.embed(torch.tensor([*prompt.ids, *answer[:-1]], device=loaded.device))
    rows = [model.encode(item.modality, [item])[0] for item in prompt.media]
    for span in prompt.spans:
        x[span.start : span.stop] = rows[span.media][span.row : span.row + span.length].to(x.dtype)
    positions = torch.arange(len(x), device=loaded.device)
    hidden = model.forward(x, ModelInputs(positions, PackedPlan(1)))
    return model.logits(hidden[len(prompt.ids) - 1 :]).float().cpu().numpy()


@torch.inference_mode()
def check_encoders(loaded: Loaded, golden: Path, waves: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest error of resampler and audio rows, relative to the largest value."""
    stored = load_file(golden / "audio" / "offline.safetensors")
    seen = load_file(golden / "vision" / "vision.safetensors")["resampler_out"]
    info = json.loads((golden / "vision" / "vision.json").read_text("utf-8"))
    options = ChatOptions(media_kwargs={"max_slice_nums": info["max_slice_nums"]})

    def rows(media: Media) -> np.ndarray:
        prompt = loaded.processor.chat([Message("user", (media,))], options)
        return loaded.model.encode(media.modality, [prompt.media[0]])[0].float().cpu().numpy()

    pictures = [part_of({"image": name}, golden, waves) for name in info["images"]]
    got = np.concatenate([rows(media) for media in pictures])
    errors = {"image": relative(got, seen.reshape(got.shape))}
    for length in ("0.3s", "1.0s", "7.3s", "31.0s"):
        errors[f"audio {length}"] = relative(rows(sound(waves[f"wave_{length}"])), stored[f"embeds_chunk1s_{length}"])
    return errors


def relative(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


# ---- full size -----------------------------------------------------------------------------------------------------


def check_full(golden: Path | None, device: str) -> None:
    with tempfile.TemporaryDirectory(dir=roomiest(), prefix="sensorium-full-") as name:
        folder = Path(name)
        started = time.perf_counter()
        write_checkpoint(folder, golden, device)
        size = sum(file.stat().st_size for file in folder.iterdir())
        report("full: checkpoint written", gb=size / 1e9, seconds=time.perf_counter() - started, at=str(folder.parent))
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        loaded = load(
            EngineConfig(model=name, device=device, dtype="bfloat16", max_model_len=8192, kv_cache_bytes=8 << 30)
        )
        seconds = time.perf_counter() - started
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    report(
        "full: loaded",
        seconds=seconds,
        phases=loaded.seconds,
        weights_gb=weights / 1e9,
        kv_tokens=loaded.plan.kv_tokens,
        attention=paged_attention(loaded.device, loaded.dtype).name,
    )
    report("full: answers", **measure(loaded, 1))
    report("full: answers", **measure(loaded, 16))
    report(
        "full: memory",
        allocated_gb=torch.cuda.memory_allocated() / 1e9,
        peak_gb=torch.cuda.max_memory_allocated() / 1e9,
        reserved_gb=torch.cuda.memory_reserved() / 1e9,
    )


def roomiest() -> str:
    """Memory-backed storage if 24 GB fit there, else the usual temporary folder."""
    shm = Path("/dev/shm")
    return str(shm) if shm.is_dir() and shutil.disk_usage(shm).free > 24e9 else tempfile.gettempdir()


@torch.no_grad()
def write_checkpoint(folder: Path, golden: Path | None, device: str) -> None:
    """A full-size checkpoint as a download has it: shards, index, config and tokenizer; weights random."""
    candidates = [golden and golden / "tokenizer", golden and golden / "tiny"]
    candidates.append(ROOT / "sensorium" / "packaged" / "sensorium-tiny")
    source = next(f for f in candidates if f and (f / "tokenizer_config.json").is_file())
    for name in (*TOKENIZER_FILES, *PROCESSOR_FILES):
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    model = loader.build(Model, Config.from_hf(FULL), device, torch.bfloat16)
    loader.init_random_(model, seed=0)
    # No token that a smaller stand-in tokenizer cannot spell may be chosen.
    vocab = json.loads((source / "tokenizer_config.json").read_text("utf-8")).get("added_tokens_decoder", {})
    if vocab:
        model.decoder.head.weight[max(map(int, vocab)) + 1 :] = 0
    loader.save_checkpoint(model, folder)
    del model
    gc.collect()
    torch.cuda.empty_cache()


def measure(loaded: Loaded, batch: int, num_tokens: int = 64) -> dict[str, object]:
    """Answer `batch` prompts of a random picture and 3 s of random sound each; times of prefill and decode steps."""
    rng = np.random.default_rng(batch)
    prompts = []
    for _ in range(batch + 1):
        media = [
            picture(rng.integers(0, 256, (720, 960, 3), dtype=np.uint8)),
            sound(rng.standard_normal(3 * RATE, dtype=np.float32) * np.float32(0.1)),
        ]
        message = Message("user", (*media, "What do you see and hear?"))
        prompts.append(loaded.processor.chat([message], ChatOptions(template_kwargs={"enable_thinking": False})))
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    # The last one warms up; it is not asked again, so nothing that is measured comes from a cache.
    run_all(loaded, [prompts.pop()], SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True))
    results = run_all(loaded, prompts, sampling)
    steps = results[0]["decode_steps_s"]
    # One decode step reads every decoder weight once, the embedding table excepted.
    read = sum(p.numel() * p.element_size() for p in loaded.model.decoder.parameters())
    read -= loaded.model.decoder.embedding.weight.nbytes
    roofline_ms = read / H200_BYTES_PER_S * 1e3
    step_ms = statistics.median(steps) * 1e3
    return {
        "batch": batch,
        "prompt_tokens": len(prompts[0].ids),
        "tokens": sum(len(result["ids"]) for result in results),
        "ttft_ms": statistics.median(result["timings"].ttft_s for result in results) * 1e3,
        "decode_ms_per_step": step_ms,
        "roofline_ms_per_step": roofline_ms,
        "share_of_roofline": roofline_ms / step_ms,
        "decode_tokens_per_s": batch / step_ms * 1e3,
        "text": results[0]["text"][:60],
    }


def run_all(loaded: Loaded, prompts: list[Prompt], sampling: SamplingParams) -> list[dict]:
    """Run prompts through Engine.step to their ends. The first result also has the seconds of decode-only steps."""
    engine = loaded.engine
    results = [{"ids": [], "text": "", "decode_steps_s": []} for _ in prompts]
    for i, prompt in enumerate(prompts):
        engine.inbox.append(Request(str(i), prompt, sampling, arrival_s=engine.clock()))
    while engine.has_work:
        started = time.perf_counter()
        events = engine.step()
        elapsed = time.perf_counter() - started
        deltas = [event for event in events if isinstance(event, TextDelta)]
        if len(deltas) == len(prompts) and all(result["ids"] for result in results):
            results[0]["decode_steps_s"].append(elapsed)
        for event in deltas:
            results[int(event.request_id)]["ids"] += event.token_ids
            results[int(event.request_id)]["text"] += event.text
        for event in events:
            if isinstance(event, Finished):
                results[int(event.request_id)]["timings"] = event.timings
            elif not isinstance(event, TextDelta):
                raise RuntimeError(event.message)
    return results


def free(loaded: Loaded) -> None:
    loaded.engine.runner.kv.clear()
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
