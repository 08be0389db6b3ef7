"""How a checkpoint and its operator want hidden rows made into embeddings. No torch: callers' processes import it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorium.config import EngineConfig
from sensorium.errors import CheckpointError, UnsupportedError
from sensorium.types import PoolingParams

TYPES = ("LAST", "MEAN", "CLS", "ALL")
# Keys of sentence-transformers' 1_Pooling/config.json.
_MODES = {"pooling_mode_lasttoken": "LAST", "pooling_mode_mean_tokens": "MEAN", "pooling_mode_cls_token": "CLS"}


@dataclass(frozen=True, slots=True)
class PoolerConfig:
    """type: which rows make the vector. dimensions: lengths a vector may be cut to; None where any may (Matryoshka)."""

    type: str = "LAST"
    normalize: bool = True
    dimensions: tuple[int, ...] | None = ()
    default_dimensions: int | None = None

    def check(self, params: PoolingParams, width: int) -> None:
        """UnsupportedError where the model cannot give what is asked for. width: numbers of a whole vector."""
        if self.type == "ALL" and params.task == "embed":
            raise UnsupportedError("task: this model pools no single vector; use token_embed", param="task")
        if params.dimensions is None:
            return
        if self.dimensions == ():
            reason = "dimensions: this model was not trained for shorter vectors (Matryoshka); leave it out"
            raise UnsupportedError(reason, param="dimensions")
        if params.dimensions > width or (self.dimensions is not None and params.dimensions not in self.dimensions):
            allowed = f"1 to {width}" if self.dimensions is None else ", ".join(map(str, self.dimensions))
            raise UnsupportedError(f"dimensions: {params.dimensions} is not one of {allowed}", param="dimensions")


def read_pooler(folder: Path, hf_config: Mapping[str, Any], config: EngineConfig) -> PoolerConfig | None:
    """How this engine pools; None if it generates. pooler_config wins over what the checkpoint's files say."""
    if config.runner != "pooling" and config.convert != "embed":
        return None
    given = config.pooler_config
    if unknown := sorted(set(given) - {"pooling_type", "normalize", "dimensions"}):
        raise CheckpointError(
            f"pooler_config: unknown key {unknown[0]!r}; known: pooling_type, normalize, dimensions",
            param="pooler_config",
        )
    kind = str(given.get("pooling_type") or _stored_type(folder)).upper()
    if kind not in TYPES:
        reason = f"pooler_config.pooling_type: {kind!r} is not supported; use {', '.join(TYPES)}"
        raise CheckpointError(reason, param="pooler_config")
    normalize = given.get("normalize")
    if normalize is None:
        modules = _read(folder / "modules.json", [])
        normalize = not modules or any(str(item.get("type", "")).endswith("Normalize") for item in modules)
    cuts = hf_config.get("matryoshka_dimensions")
    if cuts is not None:
        dimensions = tuple(int(cut) for cut in cuts)
    else:
        dimensions = None if hf_config.get("is_matryoshka") or given.get("dimensions") else ()
    return PoolerConfig(kind, bool(normalize), dimensions, given.get("dimensions"))


def _stored_type(folder: Path) -> str:
    stored = _read(folder / "1_Pooling" / "config.json", {})
    found = [name for key, name in _MODES.items() if stored.get(key)]
    if stored and len(found) != 1:
        reason = "1_Pooling/config.json asks for a pooling that is not supported; set pooler_config.pooling_type"
        raise CheckpointError(reason, param="pooler_config")
    return found[0] if found else "LAST"


def _read(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
