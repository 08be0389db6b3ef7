"""The Python API of MiniCPM-V and MiniCPM-o on this engine: change an import, and code written for the published models
runs. See docs/minicpm.md.

Names are loaded on first use: importing this package does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensorium.minicpm.auto import AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

__all__ = ["AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoTokenizer"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'sensorium.minicpm' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module("sensorium.minicpm.auto"), name)
