"""What callers and the engine tell each other, besides Request and Event. No torch: both processes import it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sensorium.engine.histogram import Buckets
from sensorium.engine.pooler_config import PoolerConfig
from sensorium.types import Request, SamplingParams, SpeechOptions, Unit


@dataclass(frozen=True, slots=True)
class Abort:
    """Control message: end a request now. Overtakes everything queued."""

    request_id: str


@dataclass(frozen=True, slots=True)
class RefuseWaiting:
    """Control message: end the requests of which nothing has been computed yet, with Failed(code, message, 503)."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ForgetPrefixes:
    """Control message: no later request finds blocks of earlier ones."""


@dataclass(frozen=True, slots=True)
class ForgetMedia:
    """Control message: drop the embeddings of media that no running request needs."""


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Control message: a resident sequence that starts with the request's prompt and is then fed units.

    policy: a name that the model's family knows, or "turn"; options are the policy's, plain values. max_len: most rows
    it holds at once. max_units: most that wait. deadline_s: when the opening prompt is to be computed. Abort closes it.
    """

    request: Request
    policy: str
    options: Mapping[str, Any]
    max_len: int
    max_units: int
    deadline_s: float
    return_hidden: bool = False
    speech: SpeechOptions | None = None


@dataclass(frozen=True, slots=True)
class AppendUnit:
    session_id: str
    unit: Unit


@dataclass(frozen=True, slots=True)
class RewindSession:
    """Control message, in order with the units: back to the rows at the end of unit `index`, -1 the opening prompt."""

    session_id: str
    index: int


@dataclass(frozen=True, slots=True)
class BargeIn:
    """Control message: end what a session is saying and begin turn number `turn`."""

    session_id: str
    turn: int
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class PauseSession:
    """Control message: compute nothing of a session, which keeps its rows; paused=False goes on."""

    session_id: str
    paused: bool


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Control message: end a session when its units are done."""

    session_id: str


@dataclass(frozen=True, slots=True)
class ChangeSpeech:
    """Control message: a session speaks otherwise from now on, or not at all."""

    session_id: str
    options: SpeechOptions | None


SessionControl = OpenSession | AppendUnit | RewindSession | BargeIn | PauseSession | CloseSession | ChangeSpeech


@dataclass(frozen=True, slots=True)
class OpenSpeech:
    """Control message: a slot of the speech LM, for calls under one rule. Abort closes it."""

    speech_id: str
    options: SpeechOptions


@dataclass(frozen=True, slots=True, eq=False)
class Say:
    """Control message: a call, after those sent before. Fields as in SpeechWork; hidden float32 [len(ids), llm_dim]."""

    speech_id: str
    call: int
    ids: tuple[int, ...]
    hidden: np.ndarray | None
    last: bool
    min_new: int | None = None
    max_new: int | None = None


@dataclass(frozen=True, slots=True)
class Hush:
    """Control message: end all calls sent so far, and the turn."""

    speech_id: str


@dataclass(frozen=True, slots=True, eq=False)
class AddVoice:
    """Control message: make a voice of a recording, float32 [S] or [S, channels]. Ends in Finished or Failed."""

    request_id: str
    name: str
    samples: np.ndarray
    rate: int


@dataclass(frozen=True, slots=True)
class RemoveVoice:
    """Control message: nobody new speaks with a voice."""

    name: str


SpeechControl = OpenSpeech | Say | Hush
VoiceControl = AddVoice | RemoveVoice
Control = Abort | RefuseWaiting | ForgetPrefixes | ForgetMedia | SessionControl | SpeechControl | VoiceControl


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. Totals count since the engine started; restarts is how often that was again.

    Each prompt token is counted once, as computed (prompt_tokens) or found (prefix_hit_tokens), however often its
    request is preempted.
    """

    waiting: int = 0
    deferred: int = 0
    """Of those waiting: for their grammar."""
    running: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    block_size: int = 0
    encoder_cache_bytes: int = 0
    encoder_cache_queries: int = 0
    encoder_cache_hits: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    encoded_items: int = 0
    preemptions: int = 0
    restarts: int = 0
    step_tokens: Buckets = field(default_factory=Buckets)
    """Tokens computed in a step; bounds STEP_TOKENS of histogram.py."""
    encoder_s: Mapping[str, Buckets] = field(default_factory=dict[str, Buckets])
    """Modality -> seconds of one pass of its encoder, over all items of a step; bounds MEDIA_S."""
    device_s: Mapping[str, Buckets] = field(default_factory=dict[str, Buckets])
    """Pass of a step (prefill, decode, speech) -> seconds on the device; bounds MEDIA_S."""
    step_s: Mapping[str, float] = field(default_factory=dict[str, float])
    """Part of a step -> seconds that the engine's thread has spent in it, waiting for the device included."""
    sessions: int = 0
    """Open now."""
    units_waiting: int = 0
    units_done: int = 0
    units_late: int = 0
    """Of those done: their text, or where they are spoken their sound, ended after the deadline."""
    units_failed: int = 0
    barge_ins: int = 0
    unit_s: Mapping[str, Buckets] = field(default_factory=dict[str, Buckets])
    """Stage of a unit (queue, prefill, decode, total, first_sound, sound) -> seconds; bounds UNIT_S."""
    sound_s: float = 0.0
    """Seconds of sound made."""
    compile_s: Buckets = field(default_factory=Buckets)
    """Seconds until an answer format could be followed; bounds COMPILE_S."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on the device: what the weights take, what one step needs at most, what is left for the KV cache."""

    weights: int
    activations: int
    kv_cache: int
    encoder_cache: int
    kv_tokens: int
    encoders: int = 0
    """Of `activations`: what encoding takes at most."""
    largest: Mapping[str, int] = field(default_factory=dict[str, int])
    """Modality -> embeddings of the largest item that settings and context admit."""
    speech: int = 0
    """KV caches of the speech LM's slots, whose weights are among `weights`, and what the codec computes in."""
    streams: int = 0
    """What encoders remember of the live sound of sessions."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says about itself when it is ready: all that callers need to know of the model."""

    model_name: str
    max_model_len: int
    vocab_size: int
    hidden_size: int
    modalities: tuple[str, ...]
    row_bytes: int
    """Bytes of one media embedding on the device."""
    encoder_cache_bytes: int
    device: str
    dtype: str
    """By torch's name, without its prefix."""
    plan: MemoryPlan
    default_sampling: SamplingParams
    speech_slots: int = 0
    """Who may speak at once; 0 where no speech LM is loaded."""
    can_sound: bool = False
    """Whether there is a codec."""
    can_clone: bool = False
    """Whether it makes voices of recordings."""
    voices: tuple[str, ...] = ()
    """Those that are there from the start."""
    recordings: Mapping[str, str] = field(default_factory=dict[str, str])
    """The WAVE files of those that were made of one."""
    pooler: PoolerConfig | None = None
    """How embeddings are made; None for an engine that generates."""
    seconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """What each phase of loading took."""
    kernels: Mapping[str, str] = field(default_factory=dict[str, str])
    """Op -> the implementation chosen."""
