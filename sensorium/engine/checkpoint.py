"""A model's name to the folder with its files. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from sensorium.errors import CheckpointError

PACKAGED_MODEL = "sensorium-tiny"
Progress = Callable[[str, float], None]
"""Called with a phase ("weights", "warm-up") and the share of it that is done, 0 to 1."""


def resolve_folder(model: str) -> Path:
    """The checkpoint folder of a model name: the packaged one, a local path, or a download from the hub."""
    if model in ("", PACKAGED_MODEL):
        return Path(str(files("sensorium") / "packaged" / PACKAGED_MODEL))
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise CheckpointError(
            f"no model folder at {model!r}; give a folder with config.json, or a hub name like owner/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
        return Path(snapshot_download(model, allow_patterns=wanted))
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
