"""What a live session tells: one vocabulary, of which every door is a translation. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sensorium.errors import SensoriumError

Reason = Literal[
    "stopped",
    "expired",
    "idle",
    "paused",
    "lost",
    "replaced",
    "context_full",
    "shutting_down",
    "engine_restarted",
    "failed",
]
"""Why a session ended. lost: nobody came back to it in time."""


@dataclass(frozen=True, slots=True)
class Queued:
    """All places are taken. position: counted from 1."""

    position: int
    estimate_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """The session has a place and its opening is computed. speech: whether sound will come out of it."""

    speech: bool


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The model begins to speak. Turns are counted from 1."""

    turn: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    unit: int
    turn: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class SoundDelta:
    """pcm: 16-bit little-endian mono at 24 kHz. last: nothing of the turn follows; pcm may be empty then."""

    unit: int
    turn: int
    pcm: bytes
    last: bool = False


@dataclass(frozen=True, slots=True)
class UnitTimes:
    """wait: last sample to first computed; encode: a part of it; prefill: to the decision; decode: the words; speech:
    from there to the last sound, None without; total: last sample to the end."""

    wait: float
    encode: float
    prefill: float
    decode: float
    speech: float | None
    total: float


@dataclass(frozen=True, slots=True)
class UnitOver:
    """A unit is over, its sound included. start_sample, end_sample: where it lies in what was heard, at 16 kHz."""

    unit: int
    decision: Literal["listen", "speak"]
    turn: int | None
    text: str
    text_end: bool
    start_sample: int
    end_sample: int
    times: UnitTimes
    behind_s: float
    kv_used: int
    kv_limit: int
    num_tokens: int
    """Of what was said."""


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """cancelled: by an interruption; no sound of this turn or an earlier one follows."""

    turn: int
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Late:
    """Units were left out because the server is behind; frames: pictures that were, or of which too many came."""

    dropped_s: float = 0.0
    frames: int = 0


@dataclass(frozen=True, slots=True)
class Paused:
    """on: False when it goes on."""

    on: bool


@dataclass(frozen=True, slots=True)
class Muted:
    on: bool


@dataclass(frozen=True, slots=True)
class Restarted:
    """The engine was lost, and the session goes on in another one. Turns that were open have been cancelled."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """Something that was given could not be used; the session goes on."""

    error: SensoriumError


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a whole session. heard_samples at 16 kHz, spoken_samples at 24 kHz; played_s: what its client has told."""

    seconds: float = 0.0
    units: int = 0
    units_late: int = 0
    spoken_units: int = 0
    heard_samples: int = 0
    spoken_samples: int = 0
    played_s: float | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """The last event. error: what it failed with, if it did."""

    reason: Reason
    usage: Usage
    error: SensoriumError | None = None


Event = (
    Queued
    | Opened
    | TurnStarted
    | TextDelta
    | SoundDelta
    | UnitOver
    | TurnEnded
    | Late
    | Paused
    | Muted
    | Restarted
    | Wrong
    | Closed
)
