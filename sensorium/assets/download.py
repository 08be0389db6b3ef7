"""One public file, kept in a folder after its first use."""

from __future__ import annotations

import os
import tempfile
import urllib.request
from pathlib import Path

from sensorium.envs import read_environment
from sensorium.errors import NotFoundError

BUCKET = "https://vllm-public-assets.s3.us-west-2.amazonaws.com"
VIDEOS = "https://huggingface.co/datasets/raushan-testing-hf/videos-test/resolve/main"
TIMEOUT_S = 30.0


def asset_url(name: str, base: str = BUCKET) -> str:
    """Where an asset is published. SENSORIUM_ASSETS_URL, where set, is the base of all."""
    return f"{(read_environment().assets_url or base).rstrip('/')}/{name}"


def asset_folder() -> Path:
    """SENSORIUM_ASSETS_CACHE, or `sensorium/assets` in the user's cache folder."""
    if chosen := read_environment().assets_cache:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sensorium" / "assets"


def asset_path(name: str, base: str = BUCKET) -> Path:
    """The file, downloaded if it is not there. Raises NotFoundError saying where to put it by hand."""
    path = asset_folder() / Path(name).name
    if path.is_file():
        return path
    url = asset_url(name, base)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            content = answer.read()
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, path)  # a download that is cut off never looks like the file
    except OSError as error:
        raise NotFoundError(
            f"cannot download {url} ({error}); put the file at {path}, or set SENSORIUM_ASSETS_URL to where it is"
        ) from error
    return path
