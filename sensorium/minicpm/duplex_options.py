"""The options of as_duplex(), with the names and defaults of the released code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sensorium.errors import RequestError, UnsupportedError

# What the encoder and the units are made for: other values would be other models.
_FIXED = {"chunk_ms": 1000, "first_chunk_ms": 1035, "cnn_redundancy_ms": 20, "sample_rate": 16_000}


class Left:
    """A default of streaming_generate: what as_duplex() was told goes before it."""


class _LeftInt(Left, int):
    pass


class _LeftFloat(Left, float):
    pass


def left(value: Any) -> Any:
    """`value`, marked as left out."""
    return _LeftInt(value) if isinstance(value, int) else _LeftFloat(value)


@dataclass(frozen=True, slots=True)
class DuplexOptions:
    """seed: of all draws, None for others every time. demo: as the demo's service does: units end at 28 characters,
    and short blocks are sounded in every unit.

    max_len: rows that a session may hold; None is the window's height and some.
    """

    generate_audio: bool = True
    ls_mode: str = "explicit"
    max_new_speak_tokens_per_chunk: int = 20
    temperature: float = 0.7
    top_k: int = 100
    top_p: float = 0.8
    text_repetition_penalty: float = 1.05
    text_repetition_window_size: int = 512
    listen_prob_scale: float = 1.0
    listen_top_k: int | None = None
    listen_scale: float = 1.0
    length_penalty: float = 1.1
    force_listen_count: int = 0
    tts_temperature: float = 0.8
    tts_repetition_penalty: float = 1.05
    n_timesteps: int = 10
    enable_float16: bool = False
    sliding_window_mode: str = "off"
    basic_window_high_tokens: int = 8000
    basic_window_low_tokens: int = 6000
    context_previous_max_tokens: int = 500
    context_max_units: int = 24
    max_len: int | None = None
    demo: bool = False
    seed: int | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> DuplexOptions:
        rest = dict(given)
        for name, value in _FIXED.items():
            if rest.pop(name, value) != value:
                raise UnsupportedError(f"{name}: this model is made for {value}; leave it out", param=name)
        known = [field.name for field in fields(cls)]
        for name in rest:
            if name not in known:
                raise RequestError(f"as_duplex() has no option {name!r}; it has {', '.join(known)}", param=name)
        return cls(**rest)

    def of(self, name: str) -> Any:
        return getattr(self, name)

    def policy(self) -> dict[str, Any]:
        """What the engine is told when a session is opened."""
        names = ("ls_mode", "force_listen_count", "sliding_window_mode", "basic_window_high_tokens")
        names += ("basic_window_low_tokens", "context_previous_max_tokens", "context_max_units")
        return {name: self.of(name) for name in names}
