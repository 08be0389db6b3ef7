"""A model's decoder here and in transformers: same weights, same prompts, same greedy tokens, one run."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sensorium.bench.model import random_prompts
from sensorium.bench.report import machine
from sensorium.config import EngineConfig
from sensorium.errors import SensoriumError
from sensorium.llm import LLM
from sensorium.models.loader import export_tensors
from sensorium.types import SamplingParams

# What Qwen3ForCausalLM reads from config.json; our own checkpoint has the same fields at its root.
FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "hidden_act", "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings",
    "attention_bias",
)  # fmt: skip


def compare(
    config: EngineConfig, batches: Sequence[int], prompt_len: int, num_tokens: int, repeat: int
) -> dict[str, Any]:
    """Tokens per second of both sides per batch, alternating runs, medians, and the share of equal tokens."""
    try:
        import transformers
    except ImportError:
        raise SensoriumError('the comparison needs transformers: pip install "sensorium[dev]"') from None
    # Neither side may know a prompt from an earlier run, and neither loads a tower.
    config = replace(config, init_vision=False, init_audio=False, enable_prefix_caching=False)
    with LLM.from_config(config) as llm, tempfile.TemporaryDirectory() as folder:
        save_qwen3(llm.client.loaded.model, Path(folder))
        other = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        rows = [_row(llm, other, batch, prompt_len, num_tokens, repeat) for batch in batches]
    versions = {"transformers": transformers.__version__}
    return {
        "model": llm.client.model_name,
        "prompt_tokens": prompt_len,
        "new_tokens": num_tokens,
        **versions,
        **machine(),
        "rows": rows,
    }


def save_qwen3(model: Any, folder: Path) -> None:
    """Write a model's decoder as a Qwen3 checkpoint."""
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "float32"}
    config |= {name: model.config.source[name] for name in FIELDS if name in model.config.source}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        name.removeprefix("llm."): tensor.clone() for name, tensor in export_tensors(model) if name.startswith("llm.")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _row(llm: LLM, other: Any, batch: int, prompt_len: int, num_tokens: int, repeat: int) -> dict[str, Any]:
    prompts = [list(prompt.ids) for prompt in random_prompts(llm.client, batch, prompt_len, seed=batch)]
    ours: list[float] = []
    theirs: list[float] = []
    tokens: list[list[int]] = []
    reference: list[list[int]] = []
    for run in range(repeat + 1):  # the first run of each warms up
        seconds, tokens = _ours(llm, prompts, num_tokens)
        other_seconds, reference = _theirs(other, prompts, num_tokens)
        if run > 0:
            ours.append(seconds)
            theirs.append(other_seconds)
    same = [
        a == b for ours_, theirs_ in zip(tokens, reference, strict=True) for a, b in zip(ours_, theirs_, strict=True)
    ]
    count = batch * num_tokens
    return {
        "batch": batch,
        "sensorium_tokens_per_s": count / statistics.median(ours),
        "transformers_tokens_per_s": count / statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "equal_tokens": statistics.mean(same),
    }


def _ours(llm: LLM, prompts: list[list[int]], num_tokens: int) -> tuple[float, list[list[int]]]:
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    started = time.perf_counter()
    outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - started, [output.outputs[0].token_ids for output in outputs]


@torch.inference_mode()
def _theirs(model: Any, prompts: list[list[int]], num_tokens: int) -> tuple[float, list[list[int]]]:
    ids = torch.tensor(prompts)
    started = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        pad_token_id=0,
    )
    return time.perf_counter() - started, out[:, ids.shape[1] :].tolist()
