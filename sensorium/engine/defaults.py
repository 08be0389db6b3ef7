"""How a checkpoint wants its tokens chosen where the caller does not say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.errors import CheckpointError
from sensorium.types import SamplingParams

_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_default_sampling(folder: Path) -> SamplingParams:
    """From generation_config.json, where there is one: its sampling values, greedy if do_sample is false."""
    defaults = SamplingParams(max_tokens=None)
    try:
        config: Any = json.loads((folder / "generation_config.json").read_text("utf-8"))
        given = {name: config[name] for name in _FIELDS if config.get(name) is not None}
        if config.get("do_sample") is False:
            given["temperature"] = 0.0
        return replace(defaults, **{name: type(getattr(defaults, name))(value) for name, value in given.items()})
    except FileNotFoundError:
        return defaults
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'generation_config.json'} cannot be read: {error}") from error
