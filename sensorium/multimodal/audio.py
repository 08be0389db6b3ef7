"""Under vLLM's module name."""

from __future__ import annotations

from sensorium.media.split import split_audio

__all__ = ["split_audio"]
