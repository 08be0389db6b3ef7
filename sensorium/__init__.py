"""A small serving engine for models that see and hear.

The names are loaded on first use, so that `import sensorium` and `sensorium --help` do not wait for torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.config import EngineConfig, MediaLimits, ServerConfig
    from sensorium.errors import SensoriumError
    from sensorium.llm import LLM
    from sensorium.outputs import CompletionOutput, EmbeddingRequestOutput, PoolingRequestOutput, RequestOutput
    from sensorium.params import BeamSearchParams, PoolingParams, SamplingParams

# torch's CPU threads spin while they wait, on cores that media, HTTP and other programs could use; asleep they cost
# nothing. It is read when torch is first imported, and left alone where the user has set it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

_HOMES = {
    "LLM": "llm",
    "CompletionOutput": "outputs",
    "RequestOutput": "outputs",
    "EmbeddingRequestOutput": "outputs",
    "PoolingRequestOutput": "outputs",
    "SamplingParams": "params",
    "BeamSearchParams": "params",
    "PoolingParams": "params",
    "EngineConfig": "config",
    "MediaLimits": "config",
    "ServerConfig": "config",
    "SensoriumError": "errors",
}

__all__ = [
    "LLM",
    "BeamSearchParams",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "EngineConfig",
    "MediaLimits",
    "PoolingParams",
    "PoolingRequestOutput",
    "RequestOutput",
    "SamplingParams",
    "SensoriumError",
    "ServerConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sensorium' has no attribute {name!r}")
    return getattr(import_module(f"sensorium.{_HOMES[name]}"), name)
