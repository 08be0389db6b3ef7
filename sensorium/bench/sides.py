"""The engines that are measured side by side, behind one call: prompts of token ids in, greedy answers out."""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file

from sensorium import __version__
from sensorium.errors import SensoriumError, UnsupportedError
from sensorium.llm import LLM
from sensorium.models.loader import export_tensors
from sensorium.types import SamplingParams

Ids = list[list[int]]

# What Qwen3ForCausalLM reads from config.json; our own checkpoint has the same fields at its root.
_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "hidden_act", "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings",
    "attention_bias",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how ours computes, and so the others."""

    device: torch.device
    dtype: torch.dtype
    max_model_len: int
    memory_share: float


class Side(Protocol):
    name: str
    version: str

    def generate(self, prompts: Ids, wanted: Sequence[int]) -> Ids:
        """As many tokens as wanted for each prompt, whatever they are."""
        ...


class Sensorium:
    name, version = "sensorium", __version__

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    def generate(self, prompts: Ids, wanted: Sequence[int]) -> Ids:
        params = [SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True) for count in wanted]
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]


class Transformers:
    """One padded batch: it ends when its last request does, and what others did not ask for is cut off."""

    name = "transformers"

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        module = importlib.import_module("transformers")
        self._model = module.Qwen3ForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.version: str = module.__version__

    @torch.inference_mode()
    def generate(self, prompts: Ids, wanted: Sequence[int]) -> Ids:
        longest, count, device = max(map(len, prompts)), max(wanted), self._model.device
        padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
        out = self._model.generate(
            padded, attention_mask=mask, do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
        )
        return [row[:most] for row, most in zip(out[:, longest:].tolist(), wanted, strict=True)]


class Vllm:
    """vLLM in this process, where it is installed, with its own defaults but for the share of the memory."""

    name = "vllm"

    def __init__(self, folder: Path, dtype: torch.dtype, max_model_len: int, memory_share: float) -> None:
        self._module = importlib.import_module("vllm")
        self.version: str = self._module.__version__
        self._llm = self._module.LLM(
            model=str(folder), skip_tokenizer_init=True, dtype=str(dtype).removeprefix("torch."),
            max_model_len=max_model_len, gpu_memory_utilization=memory_share, enable_prefix_caching=False,
        )  # fmt: skip

    def generate(self, prompts: Ids, wanted: Sequence[int]) -> Ids:
        params = [
            self._module.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
            for count in wanted
        ]
        outputs = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def open_other(name: str, folder: Path, place: Place) -> Side:
    """One of shapes.OTHERS on what save_decoder wrote. It wants a GPU's memory for itself: close ours before."""
    if name == "transformers":
        return Transformers(folder, place.dtype, place.device)
    return Vllm(folder, place.dtype, place.max_model_len, place.memory_share)


def check_installed(names: Sequence[str]) -> None:
    """Raises SensoriumError for one that cannot be imported, before anything is measured."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            hint = ': pip install "sensorium[dev]"' if name == "transformers" else ""
            raise SensoriumError(f"the comparison needs {name}, which is not installed{hint}")


def save_decoder(model: Any, folder: Path) -> None:
    """Write a model's decoder as the Qwen3 checkpoint that others read. Raises UnsupportedError where it is none."""
    source = model.config.source
    if getattr(model.config, "version", None) != (4, 5):
        raise UnsupportedError(
            "compare: the others run Qwen3 decoders, as those of MiniCPM-o 4.5, MiniCPM-V 4.5 and the packaged model; "
            f"this is a {source.get('model_type')}",
            param="compare",
        )
    config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "torch_dtype": "float32"}
    config |= {name: source[name] for name in _FIELDS if name in source}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {
        name.removeprefix("llm."): tensor.contiguous()
        for name, tensor in export_tensors(model)
        if name.startswith("llm.")
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def equal_share(ours: Ids, theirs: Ids) -> float:
    """The share of tokens that are the same in the same place."""
    return statistics.fmean(
        a == b for mine, his in zip(ours, theirs, strict=True) for a, b in zip(mine, his, strict=True)
    )
