"""OpenAI's Live events, as far as they are taken, and a camera's pictures, which they do not know."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sensorium.errors import UnsupportedError
from sensorium.params import LiveSettings
from sensorium.server.live.opening import LiveOptions
from sensorium.server.live.sockets import decoded

MAX_MESSAGE = 4 << 20
MAX_HISTORY = 128
STOCK_VOICES = frozenset(
    ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse")
)
"""OpenAI's names. Clients name one whatever the server has; here they are its default voice."""
_SPEAKERS = {"developer": "System", "user": "User", "assistant": "You"}


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Format(_Strict):
    type: str
    rate: int | None = None


class VoiceId(_Strict):
    id: str


class AudioOutput(_Strict):
    voice: str | VoiceId | None = None


class Audio(_Strict):
    format: Format | None = None
    output: AudioOutput | None = None


class Part(_Strict):
    text: str
    type: Literal["input_text", "text", "output_text"] | None = None


class Item(_Strict):
    role: Literal["developer", "user", "assistant"]
    content: Annotated[list[Part], Meta(min_length=1, max_length=1)]
    id: str | None = None
    status: str | None = None
    type: Literal["message"] | None = None


class Delegation(_Strict):
    type: str
    acknowledgement_delay_ms: int | None = None
    responses: Any = None
    decisions: Any = None


class Extension(_Strict):
    """Ours. silence: zeros while nothing is said, or nothing; the rest as in docs/duplex-protocol.md."""

    silence: Literal["send", "omit"] = "send"
    listen_bias: float = 1.0
    force_listen_units: int | None = None
    max_slices: Annotated[int, Meta(ge=1, le=9)] = 1
    window: Literal["slide", "context", "off"] = "slide"


class SessionConfig(_Strict):
    model: str | None = None
    instructions: str | None = None
    audio: Audio | None = None
    input: Annotated[list[Item], Meta(max_length=MAX_HISTORY)] | None = None
    delegation: Delegation | None = None
    triggers: list[Any] | None = None
    store: bool | None = None
    client: Any = None
    safety_identifier: str | None = None
    sensorium: Extension = msgspec.field(default_factory=Extension)


class SessionChange(_Strict):
    delegation: Delegation | None = None
    triggers: list[Any] | None = None


class Command(_Strict):
    event_id: str | None = None


class StartSession(Command, tag="session.start", kw_only=True):
    session: SessionConfig


class UpdateSession(Command, tag="session.update", kw_only=True):
    session: SessionChange


class CloseSession(Command, tag="session.close"):
    pass


class AppendAudio(Command, tag="session.input_audio.append", kw_only=True):
    audio: str


class Mute(Command, tag="session.input_audio.mute"):
    pass


class Unmute(Command, tag="session.input_audio.unmute"):
    pass


class AppendImage(Command, tag="session.input_image.append", kw_only=True):
    image: str


class _Append(Command, kw_only=True):
    content: str
    delegation_id: str | None = None


class AppendInstructions(_Append, tag="session.instructions.append"):
    pass


class AppendThinking(_Append, tag="session.thinking.append"):
    pass


class AppendCommentary(_Append, tag="session.commentary.append"):
    pass


Said = (
    StartSession
    | UpdateSession
    | CloseSession
    | AppendAudio
    | Mute
    | Unmute
    | AppendImage
    | AppendInstructions
    | AppendThinking
    | AppendCommentary
)
_SAID: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)


def read_said(data: str | bytes) -> Said:
    """Raises RequestError naming the field."""
    return decoded(_SAID, data)


class _Named(msgspec.Struct):
    event_id: str | None = None


def ident_of(data: str | bytes) -> str | None:
    """The event_id of a message, which may not be one that can be read: clients wait for what becomes of it."""
    try:
        ident = msgspec.json.decode(data, type=_Named).event_id
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return ident and ident[:512]


def rate_of(config: SessionConfig) -> int:
    """Of the sound, both ways. Raises UnsupportedError for another form than 16-bit samples at 16 or 24 kHz."""
    form = config.audio.format if config.audio is not None else None
    if form is None:
        return 24_000
    if form.type != "audio/pcm" or form.rate not in (None, 16_000, 24_000):
        reason = "session.audio.format: use audio/pcm with a rate of 16000 or 24000"
        raise UnsupportedError(reason, param="session.audio.format")
    return form.rate or 24_000


def check_delegation(delegation: Delegation | None, triggers: list[Any] | None) -> None:
    if delegation is not None and delegation.type != "client":
        reason = f"session.delegation: {delegation.type[:40]!r} is not served; leave it out, or use client"
        raise UnsupportedError(reason, param="session.delegation")
    if triggers:
        raise UnsupportedError("session.triggers: there are none here; leave them out", param="session.triggers")


def options_of(config: SessionConfig, key: str) -> LiveOptions:
    """Raises what is wrong or not served, by its field."""
    check_delegation(config.delegation, config.triggers)
    for name in ("store", "client"):
        if getattr(config, name):
            raise UnsupportedError(f"session.{name}: not served here; leave it out", param=f"session.{name}")
    output = config.audio.output if config.audio is not None else None
    voice = None if output is None else output.voice
    name = voice.id if isinstance(voice, VoiceId) else voice
    extra = config.sensorium
    settings = LiveSettings(
        instructions=_instructions(config),
        listen_bias=extra.listen_bias,
        force_listen_units=extra.force_listen_units,
        window=extra.window,
    )
    return LiveOptions(settings, None if name in STOCK_VOICES else name, max_slices=extra.max_slices, key=key)


def _instructions(config: SessionConfig) -> str | None:
    """What was said before stands behind the instructions, as text."""
    if not config.input:
        return config.instructions if config.instructions and config.instructions.strip() else None
    lines = [f"{_SPEAKERS[item.role]}: {item.content[0].text}" for item in config.input]
    return "\n".join([config.instructions or "", "", "The conversation so far:", *lines]).strip()


def session_fields(ident: str, model: str, expires_at: int, config: SessionConfig, rate: int) -> dict[str, Any]:
    """The session as its client is told of it."""
    output = config.audio.output if config.audio is not None else None
    told = {"format": {"type": "audio/pcm", "rate": rate}}
    if output is not None:
        told["output"] = msgspec.to_builtins(output)
    return {
        "id": ident,
        "model": model,
        "status": "active",
        "expires_at": expires_at,
        "audio": told,
        "instructions": config.instructions,
        "input": msgspec.to_builtins(config.input),
        "delegation": None if config.delegation is None else {"type": "client"},
        "triggers": [],
        "store": False,
        "safety_identifier": config.safety_identifier,
    }
