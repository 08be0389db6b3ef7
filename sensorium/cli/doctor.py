"""`sensorium doctor`: what is installed, which devices and kernels will be used and why, and what a model needs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sensorium import __version__
from sensorium.cli.options import add_flags, build
from sensorium.cli.parser import Parser
from sensorium.config import EngineConfig
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "av", "soxr", "pillow", "starlette", "uvicorn", "msgspec")
PACKAGED = "sensorium-tiny"
CODECS = ("h264", "hevc", "vp9", "aac", "mp3", "opus", "flac", "vorbis")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `fix` says what to do where ok is False."""

    about: str
    text: str
    ok: bool = True
    fix: str = ""


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_flags(parser, EngineConfig, title="engine settings to plan for")


def run(parser: Parser, given: dict[str, Any]) -> int:
    config = build(EngineConfig, given, model=given["model"])
    findings = [*_environment(), *_media(), *_devices(), *_model(config)]
    if given["json"]:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        width = max(len(finding.about) for finding in findings)
        for finding in findings:
            print(f"{'ok ' if finding.ok else 'BAD'}  {finding.about:{width}}  {finding.text}")
            if not finding.ok:
                print(f"     {'':{width}}  -> {finding.fix}")
    return 0 if all(finding.ok for finding in findings) else 1


def _environment() -> list[Finding]:
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    total = _memory_bytes()
    if total is not None:
        python += f", {total / 2**30:.1f} GiB of memory"
    findings = [Finding("machine", python), Finding("sensorium", __version__)]
    for name in PACKAGES:
        try:
            findings.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed", False, f"pip install {name}"))
    return findings


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _media() -> list[Finding]:
    import av

    missing = [name for name in CODECS if name not in av.codecs_available]
    if missing:
        return [
            Finding(
                "codecs",
                f"PyAV lacks {', '.join(missing)}",
                False,
                "install the wheel: pip install --force-reinstall av",
            )
        ]
    return [Finding("codecs", ", ".join(CODECS))]


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"torch is built for CUDA {built} but sees no device" if built else "this torch is built for the CPU only"
        return [Finding("device cpu", f"{torch.get_num_threads()} threads; {why}")]
    findings = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        findings.append(Finding(f"device cuda:{index}", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"))
    return findings


def _model(config: EngineConfig) -> list[Finding]:
    """Where a model would run and what it would take, worked out from its config.json; no weight is read."""
    from sensorium.engine.checkpoint import open_checkpoint
    from sensorium.engine.loading import pick_device, pick_dtype
    from sensorium.models.build import outline

    try:
        _, hf_config = open_checkpoint(config)
        device = pick_device(config.device)
        dtype = pick_dtype(config.dtype, device, hf_config)
        model = outline(hf_config, config)
        return [*_kernels(device, dtype, model, config), _memory(model, config, device, dtype)]
    except SensoriumError as error:
        return [Finding(config.model or PACKAGED, error.message, False, "name another model or device")]


def _kernels(device: torch.device, dtype: torch.dtype, model: Any, config: EngineConfig) -> list[Finding]:
    """What runs each op that has more than one implementation, and why not the others."""
    import torch

    from sensorium.kernels import onednn, select

    choices = [
        select.paged_attention(device, dtype),
        select.decoder(device, dtype, model.head_dim, config.block_size),
        select.encoder_ops(device, dtype),
    ]
    findings = [
        Finding(choice.op, choice.name + "".join(f"; not {name}: {reason}" for name, reason in choice.refused))
        for choice in choices
    ]
    packed = onednn.supports(torch.empty(1, 1, device=device, dtype=dtype))
    products = "oneDNN with packed weights" if packed else "torch; not oneDNN: it is for float32 on a CPU"
    return [*findings, Finding("matrix products", products)]


def _memory(model: Any, config: EngineConfig, device: torch.device, dtype: torch.dtype) -> Finding:
    from sensorium.engine.loading import encoder_cache_bytes, longest_context, plan_memory, speech_bytes

    about = config.model or PACKAGED
    weights = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    token = 2 * model.num_layers * model.num_kv_heads * model.head_dim * dtype.itemsize
    text = f"{str(dtype).removeprefix('torch.')} on {device}: weights {weights / 1e9:.2f} GB"
    if device.type == "cpu":
        plan = plan_memory(model, config, device, dtype)
        return Finding(about, f"{text}, KV cache {plan.kv_cache / 1e9:.2f} GB for {plan.kv_tokens} tokens")
    left = _room(device, config) - weights - speech_bytes(config, model, dtype)
    left -= encoder_cache_bytes(config, model.hidden_size * dtype.itemsize)
    text += f", {token} bytes of KV cache a token, {max(left, 0) / 1e9:.2f} GB left for it and activations"
    fits = left >= token * (longest_context(config, model))
    return Finding(about, text, fits, "lower --max-model-len, raise --gpu-memory-utilization, or use a larger device")


def _room(device: torch.device, config: EngineConfig) -> int:
    """Bytes the engine may use on a GPU."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return int(total * config.gpu_memory_utilization) - (total - free)
