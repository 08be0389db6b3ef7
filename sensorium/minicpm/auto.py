"""from_pretrained: the keywords of transformers and of the published models, as settings of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sensorium.engine.checkpoint import PACKAGED_MODEL, open_checkpoint
from sensorium.errors import CheckpointError, ConfigError
from sensorium.minicpm.model import Checkpoint, MiniCPM, device_name
from sensorium.minicpm.omni import MiniCPMO
from sensorium.minicpm.tokenizer import MiniCPMProcessor, MiniCPMTokenizer
from sensorium.minicpm.vision import MiniCPMV
from sensorium.models.registry import family_module, find_family
from sensorium.offline.keywords import read_keywords

ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")
# A video has a picture and a sound for every second, and MiniCPM-V 4.5 takes up to 540 frames.
MAX_ITEMS = 2048


class AutoModel:
    """Opens a MiniCPM-V or MiniCPM-o checkpoint."""

    @staticmethod
    def from_pretrained(model: str | Path, **options: Any) -> MiniCPM:
        """The checkpoint of a folder or a hub name. Weights are read when they are first needed.

        options: trust_remote_code (nothing that comes with a checkpoint is executed either way), attn_implementation
        (any of ATTENTION: the engine has its own), torch_dtype or dtype, device_map (one device: "auto", "cpu",
        "cuda", "cuda:1"), low_cpu_mem_usage, init_vision, init_audio, init_tts, local_files_only, revision, cache_dir,
        token; and all keywords of sensorium.LLM. Raises CheckpointError with what to do, TypeError for a name that
        nobody knows.
        """
        checkpoint = open_pretrained(model, options)
        hf_config = checkpoint.hf_config
        if hf_config.get("model_type") not in ("minicpmv", "minicpmo"):
            names = ", ".join(hf_config.get("architectures") or ["unknown"])
            raise CheckpointError(
                f"{str(model)!r} is no MiniCPM-V or MiniCPM-o checkpoint ({names}); sensorium.LLM loads other models"
            )
        # Refuses versions and quantised weights now, not at the first question.
        parsed = family_module(find_family(hf_config)[0]).Config.from_hf(hf_config)
        is_omni = parsed.model_type == "minicpmo" and parsed.version >= (4, 5)
        return (MiniCPMO if is_omni else MiniCPMV)(checkpoint)


AutoModelForCausalLM = AutoModel


class AutoTokenizer:
    """Opens the tokenizer of a checkpoint."""

    @staticmethod
    def from_pretrained(model: str | Path, **options: Any) -> MiniCPMTokenizer:
        """Options as in AutoModel.from_pretrained."""
        return MiniCPMTokenizer(open_pretrained(model, options))


class AutoProcessor:
    """Opens the processor of a checkpoint."""

    @staticmethod
    def from_pretrained(model: str | Path, **options: Any) -> MiniCPMProcessor:
        """Options as in AutoModel.from_pretrained."""
        return MiniCPMProcessor(MiniCPMTokenizer(open_pretrained(model, options)))


def open_pretrained(model: str | Path, options: Mapping[str, Any]) -> Checkpoint:
    """The folder, its config.json, and the settings of an engine for it. No weight is read."""
    given = _Given.split(options)
    name = _local(str(model), given) if given.local_only else str(model)
    config, _ = read_keywords(name, given.engine, caller="from_pretrained()")
    if "limits" not in options:
        config = replace(config, limits=replace(config.limits, max_items=MAX_ITEMS))
    folder, hf_config = open_checkpoint(config)
    return Checkpoint(folder, hf_config, config, given.init_tts)


@dataclass(frozen=True, slots=True)
class _Given:
    """Keywords of from_pretrained, sorted."""

    engine: dict[str, Any]
    init_tts: bool
    local_only: bool

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> _Given:
        rest = {name: value for name, value in options.items() if value is not None}
        rest.pop("trust_remote_code", None)
        rest.pop("low_cpu_mem_usage", None)
        attention = rest.pop("attn_implementation", "sdpa")
        if attention not in ATTENTION:
            raise ConfigError(
                f"attn_implementation: {attention!r} is none of {', '.join(ATTENTION)}", param="attn_implementation"
            )
        if "torch_dtype" in rest:
            rest.setdefault("dtype", rest.pop("torch_dtype"))
        if "device_map" in rest:
            rest.setdefault("device", device_name(rest.pop("device_map"), "device_map"))
        for theirs, ours in (("cache_dir", "download_dir"), ("token", "hf_token")):
            if theirs in rest:
                rest[ours] = rest.pop(theirs)
        return cls(rest, bool(rest.pop("init_tts", True)), bool(rest.pop("local_files_only", False)))


def _local(model: str, given: _Given) -> str:
    """The folder of a model that is on this machine already, or the packaged model's name."""
    if model in ("", PACKAGED_MODEL) or Path(model).expanduser().is_dir():
        return model
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cache, revision = given.engine.get("download_dir"), given.engine.get("revision")
        return str(snapshot_download(model, revision=revision, cache_dir=cache, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(
            f"no model folder at {model!r}, and the hub's cache on this machine has none of that name "
            "(local_files_only); give a folder with config.json, or leave local_files_only out to download it"
        ) from error
