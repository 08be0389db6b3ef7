"""What a checkpoint is made of, without loading it: modules, types, shapes, memory by part.

>>> from sensorium.inspect import inspect
>>> print(inspect("path/of/a/checkpoint").text(depth=3))
"""

from __future__ import annotations

import json
from pathlib import Path

from sensorium.errors import CheckpointError
from sensorium.inspect.headers import stored_tensors
from sensorium.inspect.report import Part, Report
from sensorium.inspect.tree import build_tree

__all__ = ["Part", "Report", "inspect"]


def inspect(path: str | Path) -> Report:
    """The report on a checkpoint folder: config.json and the headers of its safetensors files are read.

    Raises CheckpointError with what to do.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"no model folder at {str(path)!r}; give a folder with config.json and *.safetensors files. A model of the "
            "hub can be downloaded with `hf download OWNER/NAME`, which prints its folder"
        )
    try:
        hf_config = json.loads((folder / "config.json").read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no config.json; is it a model folder?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(hf_config, dict):
        raise CheckpointError(f"{folder / 'config.json'} holds no JSON object")
    return Report(folder, build_tree(stored_tensors(folder), hf_config), hf_config)
