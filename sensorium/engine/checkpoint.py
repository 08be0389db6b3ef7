"""From a model's name to the folder with its files, its config.json, and its processor. No torch."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from sensorium.config import EngineConfig
from sensorium.envs import read_environment
from sensorium.errors import CheckpointError
from sensorium.models.base import Processor
from sensorium.models.registry import load_processor

PACKAGED_MODEL = "sensorium-tiny"
Progress = Callable[[str, float], None]
"""Called with a phase ("weights", "warm-up") and the share of it that is done, 0 to 1."""
_WEIGHTS = ("*.safetensors",)
_TEXTS = ("*.json", "*.txt", "*.jinja", "*.model")
CODEC = "assets/token2wav"
"""Where a checkpoint has its codec."""
_SPEECH = (f"{CODEC}/*", "assets/*.wav")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip


def open_checkpoint(config: EngineConfig) -> tuple[Path, dict[str, Any]]:
    """The folder of config.model, downloaded if need be, and its config.json with the overrides of config."""
    speaks = config.init_tts and config.codec == "auto"
    folder = resolve_folder(config.model, config.revision, config, _TEXTS + _WEIGHTS + (_SPEECH if speaks else ()))
    hf_config = _merge(read_config(folder), config.hf_overrides)
    return folder, _with_context(hf_config, config.max_model_len)


def open_processor(folder: Path, hf_config: Mapping[str, Any], config: EngineConfig) -> Processor:
    """The processor of what open_checkpoint returned, with the tokenizer that config names."""
    if not config.tokenizer and hf_config == read_config(folder):
        return load_processor(folder, hf_config)
    # Processors read a folder: they get one with what was changed.
    with tempfile.TemporaryDirectory(prefix="sensorium-") as name:
        copy = Path(name)
        tokenizer = (
            resolve_folder(config.tokenizer, config.tokenizer_revision, config, _TEXTS) if config.tokenizer else folder
        )
        for source, ours in ((folder, False), (tokenizer, True)):
            for file in [file for pattern in _TEXTS for file in source.glob(pattern)]:
                if (file.name in _TOKENIZER) == ours:
                    shutil.copyfile(file, copy / file.name)
        (copy / "config.json").write_text(json.dumps(hf_config), "utf-8")
        processor = load_processor(copy, hf_config)
    processor.origin = (folder, hf_config)  # the copy is gone; media workers make their own
    return processor


def _merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return merged


def _with_context(hf_config: dict[str, Any], wanted: int | None) -> dict[str, Any]:
    """Refuse a context longer than the checkpoint's, or raise that limit where the environment allows it."""
    nested = hf_config.get("text_config")
    text = nested if isinstance(nested, dict) and "max_position_embeddings" in nested else hf_config
    limit = text.get("max_position_embeddings")
    if wanted is None or not isinstance(limit, int) or wanted <= limit:
        return hf_config
    if not read_environment().allow_long_max_model_len:
        raise CheckpointError(
            f"max_model_len {wanted} is more than the {limit} tokens this checkpoint was made for; lower it, or set "
            "SENSORIUM_ALLOW_LONG_MAX_MODEL_LEN=1 if answers far out may be nonsense",
            param="max_model_len",
        )
    longer = {"max_position_embeddings": wanted}
    return _merge(hf_config, longer if text is hf_config else {"text_config": longer})


def resolve_folder(
    model: str,
    revision: str | None = None,
    config: EngineConfig | None = None,
    patterns: tuple[str, ...] = _TEXTS + _WEIGHTS,
) -> Path:
    """The checkpoint folder of a model name: the packaged one, a local path, or a download from the hub.

    config says where to download to and with which token.
    """
    config = config or EngineConfig()
    if model in ("", PACKAGED_MODEL):
        return Path(str(files("sensorium") / "packaged" / PACKAGED_MODEL))
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.startswith((".", "/", "~")) or model.endswith("/") or model.count("/") != 1:
        raise CheckpointError(
            f"no model folder at {model!r}; give a folder with config.json, or a hub name like owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if config.load_format == "dummy":
        patterns = tuple(pattern for pattern in patterns if pattern not in _WEIGHTS)
    try:
        path = snapshot_download(
            model,
            revision=revision,
            cache_dir=config.download_dir,
            token=config.hf_token,
            allow_patterns=list(patterns),
        )
        return Path(path)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot download {model!r} from the hub ({type(error).__name__}); check the name, the network and "
            "your login (`hf auth login`), or give a local folder"
        ) from error


def read_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json; is it a model folder?") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} holds no JSON object")
    return config
