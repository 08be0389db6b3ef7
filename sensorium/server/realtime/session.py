"""The settings of a connection: what is in force, how updates change it, and how it is told to the client."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from sensorium.errors import RequestError, UnsupportedError
from sensorium.server.realtime.schema import (
    BETA_FORMATS,
    Answering,
    AudioFormat,
    FunctionChoice,
    FunctionTool,
    NoiseReduction,
    Reasoning,
    SemanticVad,
    ServerVad,
    SessionUpdate,
    Tracing,
    Transcription,
    Truncation,
    TurnDetection,
)
from sensorium.server.speech.schema import chosen

RATES = {"audio/pcm": 24_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")


@dataclass(frozen=True, slots=True)
class Answers:
    """How answers are made: of a session, or of one response of it."""

    instructions: str = ""
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice = "auto"
    parallel_tool_calls: bool = True
    max_output_tokens: int | Literal["inf"] = "inf"
    sampling: dict[str, Any] = field(default_factory=dict[str, Any])
    reasoning: Reasoning | None = None
    can_speak: bool = False
    """Whether the model does."""
    speaks: bool = False
    """Whether the answer is to be heard."""
    voice: str | None = None
    """As the client names it; None is the model's own."""
    output: AudioFormat = field(default_factory=AudioFormat)
    speed: float = 1.0

    def changed(self, given: Answering, place: str) -> Answers:
        """With what an update gives. Raises RequestError naming the field below `place`."""
        changes: dict[str, Any] = _sounding(given, place)
        for name in ("output_modalities", "modalities"):
            wanted = getattr(given, name)
            if wanted is UNSET:
                continue
            if not wanted:
                raise RequestError(f"{place}.{name}: must not be empty", param=f"{place}.{name}")
            if "text" not in wanted and not self.can_speak:
                reason = f'{place}.{name}: this model does not speak; ask for ["text"]'
                raise UnsupportedError(reason, param=f"{place}.{name}")
            changes["speaks"] = "audio" in wanted and self.can_speak
        for name in ("instructions", "tool_choice", "parallel_tool_calls", "reasoning"):
            if (value := getattr(given, name)) not in (UNSET, None):
                changes[name] = value
        if given.tools not in (UNSET, None):
            changes["tools"] = tuple(given.tools)
        for name in ("max_output_tokens", "max_response_output_tokens"):
            if (value := getattr(given, name)) is not UNSET:
                changes["max_output_tokens"] = value or "inf"
        drawn = {name: value for name in SAMPLING if (value := getattr(given, name)) is not UNSET}
        return replace(self, **changes, sampling={**self.sampling, **drawn})

    @property
    def modalities(self) -> list[str]:
        return ["audio"] if self.speaks else ["text"]

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """What the model's template is told."""
        effort = None if self.reasoning is None else self.reasoning.effort
        return {} if effort is None else {"reasoning_effort": effort, "enable_thinking": effort != "none"}

    def sound(self) -> dict[str, Any]:
        """How answers sound, as clients are told."""
        rate = self.output.rate or RATES[self.output.type]
        return {"format": {"type": self.output.type, "rate": rate}, "voice": self.voice, "speed": self.speed}


@dataclass(frozen=True, slots=True)
class Session:
    """In force. turn_detection None: the client says where a turn ends."""

    id: str
    model: str
    expires_at: int
    kind: Literal["realtime", "transcription"] = "realtime"
    answers: Answers = field(default_factory=Answers)
    format: AudioFormat = field(default_factory=AudioFormat)
    turn_detection: ServerVad | SemanticVad | None = field(default_factory=ServerVad)
    transcription: Transcription | None = None
    noise_reduction: NoiseReduction | None = None
    truncation: Truncation = "auto"
    tracing: Literal["auto"] | Tracing | None = None
    include: tuple[str, ...] = ()

    @property
    def rate(self) -> int:
        """Samples per second of what the client sends."""
        return self.format.rate or RATES[self.format.type]

    def changed(self, given: SessionUpdate) -> Session:
        """After an update. Raises RequestError for what is not possible; nothing has changed then."""
        if given.type not in (UNSET, self.kind) and self.kind == "transcription":
            raise RequestError("session.type: a transcription session stays one", param="session.type")
        changes: dict[str, Any] = {"answers": self.answers.changed(given, "session")}
        if given.type is not UNSET:
            changes["kind"] = given.type
        for name in ("truncation", "tracing"):
            if (value := getattr(given, name)) is not UNSET:
                changes[name] = value
        if given.include is not UNSET:
            changes["include"] = tuple(given.include or ())
        return replace(self, **changes, **_hearing(given))

    def told(self) -> dict[str, Any]:
        """What session.created and session.updated show."""
        answers, detection = self.answers, self.turn_detection
        heard: dict[str, Any] = {
            "format": {"type": self.format.type, "rate": self.rate},
            "turn_detection": None if detection is None else msgspec.to_builtins(detection),
            "transcription": None if self.transcription is None else _written(self.transcription),
            "noise_reduction": None if self.noise_reduction is None else {"type": self.noise_reduction.type},
        }
        told: dict[str, Any] = {
            "id": self.id,
            "object": "realtime.session" if self.kind == "realtime" else "realtime.transcription_session",
            "type": self.kind,
            "model": self.model,
            "expires_at": self.expires_at,
            "include": list(self.include) or None,
            "audio": {"input": heard},
        }
        if self.kind == "transcription":
            return told
        told["audio"]["output"] = answers.sound()
        return told | {
            "output_modalities": answers.modalities,
            "instructions": answers.instructions,
            "tools": msgspec.to_builtins(answers.tools),
            "tool_choice": msgspec.to_builtins(answers.tool_choice),
            "max_output_tokens": answers.max_output_tokens,
            "truncation": msgspec.to_builtins(self.truncation),
            "tracing": msgspec.to_builtins(self.tracing),
            "reasoning": msgspec.to_builtins(answers.reasoning),
            "parallel_tool_calls": answers.parallel_tool_calls,
            **answers.sampling,
        }


def _hearing(given: SessionUpdate) -> dict[str, Any]:
    """The fields of a session about what it hears, from either spelling."""
    found = {
        "format": given.input_audio_format,
        "turn_detection": given.turn_detection,
        "transcription": given.input_audio_transcription,
        "noise_reduction": given.input_audio_noise_reduction,
    }
    if given.audio is not UNSET and given.audio.input is not UNSET:
        found |= _given(given.audio.input)
    found = {name: value for name, value in found.items() if value is not UNSET}
    if "format" in found:
        found["format"] = _format(found["format"], "session.audio.input.format")
    if found.get("turn_detection") is not None:
        found["turn_detection"] = _detection(found["turn_detection"], "session.audio.input.turn_detection")
    return found


def _written(wanted: Transcription) -> dict[str, Any]:
    """Without the younger fields where they are not used: there are clients (pipecat) that fail over those."""
    told: dict[str, Any] = msgspec.to_builtins(wanted)
    return {name: value for name, value in told.items() if value is not None or name in ("model", "language", "prompt")}


def _detection(given: TurnDetection, place: str) -> ServerVad | SemanticVad:
    kind = SemanticVad if given.type == "semantic_vad" else ServerVad
    fields = {name: value for name, value in _given(given).items() if value is not None and name != "type"}
    foreign = sorted(set(fields) - set(kind.__struct_fields__))
    if foreign:
        reason = f"{place}.{foreign[0]}: {given.type} has no such field; it has {', '.join(kind.__struct_fields__)}"
        raise RequestError(reason, param=f"{place}.{foreign[0]}")
    return kind(**fields)


def _sounding(given: Answering, place: str) -> dict[str, Any]:
    """The fields about how answers sound, from either spelling."""
    found: dict[str, Any] = {}
    if given.voice is not UNSET:
        found["voice"] = chosen(given.voice)
    if given.output_audio_format is not UNSET:
        found["output"] = _format(given.output_audio_format, f"{place}.output_audio_format")
    if given.audio is UNSET or given.audio.output is UNSET:
        return found
    output = given.audio.output
    if output.voice is not UNSET:
        found["voice"] = chosen(output.voice)
    if output.format is not UNSET:
        found["output"] = _format(output.format, f"{place}.audio.output.format")
    if output.speed is not UNSET:
        found["speed"] = output.speed
    return found


def _format(given: AudioFormat | str, place: str) -> AudioFormat:
    if isinstance(given, AudioFormat):
        if given.type != "audio/pcm" and given.rate not in (None, 8000):
            raise RequestError(f"{place}.rate: G.711 has 8000 samples a second", param=f"{place}.rate")
        return given
    if given not in BETA_FORMATS:
        raise RequestError(f"{place}: must be one of {', '.join(BETA_FORMATS)}, or an object", param=place)
    return AudioFormat(type=BETA_FORMATS[given])


def _given(struct: msgspec.Struct) -> dict[str, Any]:
    fields = {name: getattr(struct, name) for name in struct.__struct_fields__}
    return {name: value for name, value in fields.items() if value is not UNSET}
