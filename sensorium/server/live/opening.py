"""What a live session is opened with: its client's wishes, the server's limits, and what the engine begins with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.params import LiveSettings
from sensorium.types import Prompt, SpeechOptions

if TYPE_CHECKING:
    from sensorium.engine.client import LivePrompts


@dataclass(frozen=True, slots=True, eq=False)
class LiveOptions:
    """What a session is opened with. sound: whether sound is wanted; key: whose session it is, for taking it up again.

    max_frames, max_slices: pictures used of a unit, and tiles that each is cut into.
    """

    settings: LiveSettings = field(default_factory=LiveSettings)
    voice: str | None = None
    sound: bool = True
    max_frames: int = 1
    max_slices: int = 1
    stacks: bool = False
    """Of several pictures of a unit the first is shown by itself and the others as one picture, as in training."""
    key: str = ""
    reference: np.ndarray | None = None
    """A recording that the model hears as the voice it has, float32 at 16 kHz."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of sessions. Seconds: since the opening, without sound, in a pause, without a client; rows of the KV cache."""

    max_s: float = 3600.0
    idle_s: float = 60.0
    pause_s: float = 60.0
    resume_s: float = 30.0
    max_len: int = 8192
    outlives_engine: bool = True
    """Whether a session goes on in another engine when its own is lost."""


@dataclass(slots=True)
class Opening:
    """What is known before there is a place: the prompt that the session begins with."""

    prompts: LivePrompts
    prompt: Prompt
    policy: Mapping[str, Any]
    max_len: int
    speech: SpeechOptions | None = None
