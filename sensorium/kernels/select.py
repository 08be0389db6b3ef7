"""Which implementation runs where: the first candidate that supports the device, decided once, shown by doctor."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sensorium.errors import CheckpointError
from sensorium.kernels import compiled
from sensorium.kernels.cpu_plan import CpuPlan
from sensorium.kernels.encoder import EncoderOps
from sensorium.kernels.reference import PagedPlan


@dataclass(frozen=True, slots=True)
class Choice:
    """One row of the table: the op, what was chosen, and why the others were not."""

    op: str
    name: str
    implementation: Any
    refused: tuple[tuple[str, str], ...] = ()


def paged_attention(device: torch.device, dtype: torch.dtype, force: str | None = None) -> Choice:
    """The plan class for attention over the paged KV cache. force: "triton" or "reference"."""
    refused = []
    for name, reason in (("triton", _why_not_triton(device, dtype)), ("reference", None)):
        if force not in (None, name):
            refused.append((name, f"{force} was asked for"))
        elif reason is None:
            return Choice("paged attention", name, _IMPLEMENTATIONS[name](device), tuple(refused))
        else:
            refused.append((name, reason))
    why = "; ".join(f"{name}: {reason}" for name, reason in refused)
    raise CheckpointError(f"no kernel for paged attention ({why})")


def decoder(device: torch.device, dtype: torch.dtype, head_dim: int, block_size: int) -> Choice:
    """What runs a decoder's layers: "compiled" in one call, or "layers" one torch op after another.

    The implementation of "compiled" is a function that calls back with the class to use, perhaps later; of "layers",
    None.
    """
    if device.type != "cpu":
        reason = f"it is for a CPU, not {device.type}"
    elif dtype != torch.float32:
        reason = f"it is for float32, not {dtype}"
    else:
        reason = compiled.why_not(head_dim, block_size)
    if reason is None:
        return Choice("decoder", "compiled", compiled.when_ready)
    return Choice("decoder", "layers", None, (("compiled", reason),))


@cache
def encoder_ops(device: torch.device, dtype: torch.dtype) -> Choice:
    """The class of kernels.encoder's ops; for 16 bits on a GPU, as elsewhere torch's ops do."""
    if (reason := _why_not_triton(device, dtype)) is None:
        module = importlib.import_module("sensorium.kernels.triton_encoder")
        return Choice("encoders", "triton", module.TritonEncoderOps)
    return Choice("encoders", "torch", EncoderOps, (("triton", reason),))


def encoder_ops_for(device: torch.device, dtype: torch.dtype) -> type[EncoderOps]:
    """What encoders run on: kernels for 16 bits on a GPU, elsewhere torch's operations."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return encoder_ops(device, dtype).implementation
    return EncoderOps


def prefer_any_shape(device: torch.device) -> None:
    """Keep torch's attention on kernels that take any shape at once. Process-wide; for serving, not for training.

    cuDNN's are faster once a shape has been seen, but each new one took 26 to 60 ms on an H200, and
    prompts and pictures hardly ever repeat theirs.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda":
        return f"it needs a CUDA device, not {device.type}"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"its products would round {dtype} to tf32"
    return None


def _triton_plan(device: torch.device) -> Any:
    return importlib.import_module("sensorium.kernels.triton_paged").TritonPagedPlan


def _reference_plan(device: torch.device) -> Any:
    return CpuPlan if device.type == "cpu" else PagedPlan


_IMPLEMENTATIONS = {"triton": _triton_plan, "reference": _reference_plan}
