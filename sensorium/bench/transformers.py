"""A model's decoder here and in transformers: same weights, same prompts, same greedy tokens, one run."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sensorium.bench.model import random_prompts
from sensorium.bench.roofline import machine
from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient
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
    config: EngineConfig,
    batches: Sequence[int],
    prompt_len: int,
    num_tokens: int,
    repeat: int,
    dtype: str = "float32",
) -> dict[str, Any]:
    """Tokens per second of both sides per batch, alternating runs, medians, and the share of equal tokens.

    From two requests on, once more with prompts and answers of mixed lengths. dtype: what transformers computes in.
    """
    try:
        import transformers
    except ImportError:
        raise SensoriumError('the comparison needs transformers: pip install "sensorium[dev]"') from None
    # Neither side may know a prompt from an earlier run, and neither loads a tower.
    config = replace(config, init_vision=False, init_audio=False, enable_prefix_caching=False)
    with LLM.from_config(config) as llm, tempfile.TemporaryDirectory() as folder:
        save_qwen3(llm.client.loaded.model, Path(folder))
        other = transformers.Qwen3ForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        loads = [load for batch in batches for load in _loads(llm.client, batch, prompt_len, num_tokens)]
        rows = [_row(llm, other, load, repeat) for load in loads]
        ours = llm.client.facts.dtype
    versions = {"dtype": ours, "transformers_dtype": dtype, "transformers": transformers.__version__}
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
        name.removeprefix("llm."): tensor.contiguous()
        for name, tensor in export_tensors(model)
        if name.startswith("llm.")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that are there at once: token ids of each prompt, and how many tokens each wants."""

    name: str
    prompts: list[list[int]]
    wanted: list[int]

    @classmethod
    def even(cls, client: EngineClient, batch: int, prompt_len: int, num_tokens: int) -> Load:
        prompts = random_prompts(client, batch, prompt_len, seed=batch)
        return cls("equal", [list(prompt.ids) for prompt in prompts], [num_tokens] * batch)

    def mixed(self) -> Load:
        """The same prompts cut short by up to 7/8, and lengths from an eighth to all of it: what strangers send."""
        batch = len(self.prompts)
        shares = [1 / 8 + 7 / 8 * i / max(batch - 1, 1) for i in range(batch)]
        # Long prompts are not the ones with long answers: 7 has no factor in common with a power of two.
        prompts = [
            prompt[: max(int(len(prompt) * share), 1)] for prompt, share in zip(self.prompts, shares, strict=True)
        ]
        wanted = [max(int(self.wanted[i] * shares[i * 7 % batch]), 1) for i in range(batch)]
        return Load("mixed", prompts, wanted)


def _loads(client: EngineClient, batch: int, prompt_len: int, num_tokens: int) -> list[Load]:
    even = Load.even(client, batch, prompt_len, num_tokens)
    return [even, even.mixed()] if batch > 1 else [even]


def _row(llm: LLM, other: Any, load: Load, repeat: int) -> dict[str, Any]:
    ours: list[float] = []
    theirs: list[float] = []
    tokens: list[list[int]] = []
    reference: list[list[int]] = []
    for run in range(repeat + 1):  # the first run of each warms up
        seconds, tokens = _ours(llm, load)
        other_seconds, reference = _theirs(other, load)
        if run > 0:
            ours.append(seconds)
            theirs.append(other_seconds)
    same = [a == b for mine, his in zip(tokens, reference, strict=True) for a, b in zip(mine, his, strict=True)]
    return {
        "batch": len(load.prompts),
        "lengths": load.name,
        "sensorium_tokens_per_s": sum(load.wanted) / statistics.median(ours),
        "transformers_tokens_per_s": sum(load.wanted) / statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "equal_tokens": statistics.mean(same),
    }


def _ours(llm: LLM, load: Load) -> tuple[float, list[list[int]]]:
    params = [SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True) for count in load.wanted]
    started = time.perf_counter()
    outputs = llm.generate(load.prompts, params, use_tqdm=False)
    return time.perf_counter() - started, [output.outputs[0].token_ids for output in outputs]


@torch.inference_mode()
def _theirs(model: Any, load: Load) -> tuple[float, list[list[int]]]:
    """One padded batch: it ends when its last request does, and what others did not ask for is cut off."""
    started = time.perf_counter()
    longest = max(map(len, load.prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in load.prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in load.prompts])
    count = max(load.wanted)
    out = model.generate(
        padded, attention_mask=mask, do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
    )
    seconds = time.perf_counter() - started
    return seconds, [row[:wanted] for row, wanted in zip(out[:, longest:].tolist(), load.wanted, strict=True)]
