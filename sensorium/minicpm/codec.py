"""Where a checkpoint has its codec."""

from __future__ import annotations

from pathlib import Path

from sensorium.errors import CheckpointError
from sensorium.minicpm.model import Checkpoint

FOLDER = "assets/token2wav"


def find_codec(checkpoint: Checkpoint, given: str | Path | None) -> Path:
    """The folder that was given, or that of the checkpoint, downloaded where the checkpoint was."""
    if given is not None:
        return Path(given).expanduser()
    folder = checkpoint.folder / FOLDER
    name = checkpoint.engine.model
    if folder.is_dir() or Path(name).expanduser().is_dir() or name.count("/") != 1:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        config = checkpoint.engine
        found = snapshot_download(
            name,
            revision=config.revision,
            cache_dir=config.download_dir,
            token=config.hf_token,
            allow_patterns=[f"{FOLDER}/*"],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot download {FOLDER} of {name!r} ({type(error).__name__}); give its folder as model_dir"
        ) from error
    return Path(found) / FOLDER
