"""How a checkpoint wants its tokens chosen where the caller does not say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.config import EngineConfig
from sensorium.errors import CheckpointError
from sensorium.types import SamplingParams

_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_MORE = ("do_sample", "max_new_tokens")
NEUTRAL = ("vllm", "none")


def default_sampling(folder: Path, config: EngineConfig) -> SamplingParams:
    """What config.generation_config names, with config.override_generation_config over it."""
    named = config.generation_config
    if named in NEUTRAL:
        defaults = SamplingParams(max_tokens=None)
    elif named == "auto":
        defaults = read_default_sampling(folder)
    elif (Path(named).expanduser() / "generation_config.json").is_file():
        defaults = read_default_sampling(Path(named).expanduser())
    else:
        raise CheckpointError(
            f"generation_config: {named!r} is no folder with a generation_config.json; or use auto, vllm or none",
            param="generation_config",
        )
    override = config.override_generation_config
    for name in override:
        if name not in _FIELDS + _MORE:
            raise CheckpointError(
                f"override_generation_config has no {name!r}; known: {', '.join(_FIELDS + _MORE)}",
                param="override_generation_config",
            )
    try:
        return _over(defaults, override)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"override_generation_config: {error}", param="override_generation_config") from error


def read_default_sampling(folder: Path) -> SamplingParams:
    """From generation_config.json, where there is one: its sampling values, greedy if do_sample is false."""
    defaults = SamplingParams(max_tokens=None)
    try:
        config: Any = json.loads((folder / "generation_config.json").read_text("utf-8"))
        return _over(defaults, {name: value for name, value in config.items() if name in (*_FIELDS, "do_sample")})
    except FileNotFoundError:
        return defaults
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'generation_config.json'} cannot be read: {error}") from error


def _over(defaults: SamplingParams, values: Mapping[str, Any]) -> SamplingParams:
    given = {name: values[name] for name in _FIELDS if values.get(name) is not None}
    if values.get("do_sample") is False:
        given["temperature"] = 0.0
    found = {name: type(getattr(defaults, name))(value) for name, value in given.items()}
    if values.get("max_new_tokens") is not None:
        found["max_tokens"] = int(values["max_new_tokens"])
    return replace(defaults, **found)
