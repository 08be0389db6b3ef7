"""A small serving engine for models that see and hear.

The names are loaded on first use, so that `import sensorium` and `sensorium --help` do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.config import EngineConfig, MediaLimits, ServerConfig
    from sensorium.errors import SensoriumError
    from sensorium.llm import LLM, CompletionOutput, RequestOutput
    from sensorium.types import SamplingParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "llm",
    "CompletionOutput": "llm",
    "RequestOutput": "llm",
    "SamplingParams": "types",
    "EngineConfig": "config",
    "MediaLimits": "config",
    "ServerConfig": "config",
    "SensoriumError": "errors",
}

__all__ = [
    "LLM",
    "CompletionOutput",
    "EngineConfig",
    "MediaLimits",
    "RequestOutput",
    "SamplingParams",
    "SensoriumError",
    "ServerConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sensorium' has no attribute {name!r}")
    return getattr(import_module(f"sensorium.{_HOMES[name]}"), name)
