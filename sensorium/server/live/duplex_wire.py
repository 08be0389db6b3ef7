"""The words of docs/duplex-protocol.md: what a client may send, and how a session's events are written."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from sensorium.errors import RequestError, UnsupportedError
from sensorium.params import LiveSettings
from sensorium.server.live.events import UnitOver, UnitTimes, Usage
from sensorium.server.live.opening import LiveOptions
from sensorium.server.live.sockets import decoded

HEADER = struct.Struct("<BBHIQ")
SOUND, JPEG, WEBP, OPUS, PNG = 1, 2, 3, 4, 5
JUMPS, LAST, LISTEN = 1, 2, 4
MAX_MESSAGE = 1 << 20

Rate = Literal[8000, 16000, 24000, 48000]
Count = Annotated[int, Meta(ge=0)]


class _Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class AudioChoice(_Strict):
    input: Rate = msgspec.field(name="in", default=16000)
    output: Rate | None = msgspec.field(name="out", default=24000)


class VideoChoice(_Strict):
    max_fps: Annotated[int, Meta(ge=1, le=5)] | UnsetType = UNSET
    stack: bool | UnsetType = UNSET
    max_slices: Annotated[int, Meta(ge=1, le=9)] | UnsetType = UNSET


class WindowChoice(_Strict):
    policy: Literal["slide", "context", "off"] = "slide"


class Sampling(_Strict):
    temperature: float | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    repetition_penalty: float | UnsetType = UNSET
    length_penalty: float | UnsetType = UNSET
    max_tokens: int | UnsetType = UNSET
    seed: int | UnsetType = UNSET


class Start(_Strict, tag="start"):
    model: str | None = None
    instructions: str | None = None
    voice: str | None = None
    audio: AudioChoice = msgspec.field(default_factory=AudioChoice)
    video: VideoChoice = msgspec.field(default_factory=VideoChoice)
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    window: WindowChoice = msgspec.field(default_factory=WindowChoice)
    listen_bias: float = 1.0
    force_listen_units: int | None = None


class Resume(_Strict, tag="resume"):
    """With a session it takes one up again; without, it ends a pause."""

    session: str | None = None
    resume_token: str | None = None
    seq: Count = 0
    audio_seq: Count = 0


class Update(_Strict, tag="update"):
    listen_bias: float | UnsetType = UNSET
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    video: VideoChoice = msgspec.field(default_factory=VideoChoice)


class Interrupt(_Strict, tag="interrupt"):
    pass


class Mute(_Strict, tag="mute"):
    on: bool = True


class Text(_Strict, tag="text"):
    text: str


class Pause(_Strict, tag="pause"):
    pass


class Played(_Strict, tag="played"):
    samples: Count


class Ping(_Strict, tag="ping"):
    t: float | int | Annotated[str, Meta(max_length=64)] | None = None


class Stop(_Strict, tag="stop"):
    pass


Said = Start | Resume | Update | Interrupt | Mute | Text | Pause | Played | Ping | Stop
_SAID: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)


def read_said(data: str) -> Said:
    """A text frame. Raises RequestError naming the field."""
    return decoded(_SAID, data)


@dataclass(frozen=True, slots=True)
class Frame:
    """A binary frame."""

    kind: int
    flags: int
    position: int
    payload: memoryview


def read_frame(data: bytes) -> Frame:
    """Raises RequestError for what is none."""
    if len(data) < HEADER.size:
        raise RequestError(f"a binary frame begins with {HEADER.size} bytes of header", param="frame")
    kind, flags, _, _, position = HEADER.unpack_from(data)
    if kind == OPUS:
        raise UnsupportedError("kind 4: Opus is not decoded; send 16-bit samples as kind 1", param="kind")
    if kind not in (SOUND, JPEG, WEBP, PNG):
        raise RequestError(f"kind {kind}: known are 1 (sound), 2 (JPEG), 3 (WebP) and 5 (PNG)", param="kind")
    if not 0 <= flags < 16:
        raise RequestError(f"flags {flags}: only the lowest four bits are used", param="flags")
    return Frame(kind, flags, position, memoryview(data)[HEADER.size :])


def sound_frame(flags: int, sequence: int, position: int, pcm: bytes) -> bytes:
    return HEADER.pack(SOUND, flags, 0, sequence & 0xFFFFFFFF, position) + pcm


def options_of(start: Start, voice: str | None, key: str) -> LiveOptions:
    """Raises RequestError for a value out of its range."""
    settings = LiveSettings(
        instructions=start.instructions,
        window=start.window.policy,
        force_listen_units=start.force_listen_units,
        listen_bias=start.listen_bias,
        **_given(start.sampling),
    )
    video = start.video
    return LiveOptions(
        settings,
        voice=start.voice or voice,
        sound=start.audio.output is not None,
        max_frames=1 if video.max_fps is UNSET else video.max_fps,
        max_slices=1 if video.max_slices is UNSET else video.max_slices,
        stacks=video.stack is True,
        key=key,
    )


def updated(settings: LiveSettings, frames: tuple[int, int], change: Update) -> tuple[LiveSettings, int, int]:
    """Settings, pictures of a unit and tiles of each, after an update."""
    given = _given(change.sampling)
    if "seed" in given:
        raise RequestError("sampling.seed: it is fixed for the session", param="sampling.seed")
    if change.listen_bias is not UNSET:
        given["listen_bias"] = change.listen_bias
    if change.video.stack is not UNSET:
        raise RequestError("video.stack: it is fixed for the session", param="video.stack")
    most, slices = change.video.max_fps, change.video.max_slices
    return replace(settings, **given), frames[0] if most is UNSET else most, frames[1] if slices is UNSET else slices


def _given(sampling: Sampling) -> dict[str, Any]:
    fields = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    return {name: value for name, value in fields.items() if value is not UNSET}


def unit_fields(event: UnitOver, in_samples: int, out_samples: int) -> dict[str, Any]:
    """A unit, its positions at the client's rates."""
    return {
        "n": event.unit,
        "decision": event.decision,
        "text": event.text,
        "text_end": event.text_end,
        "turn": event.turn,
        "in_samples": in_samples,
        "out_samples": out_samples,
        "behind_ms": _ms(event.behind_s),
        "ms": _times(event.times),
        "kv": {"used": event.kv_used, "limit": event.kv_limit},
    }


def usage_fields(usage: Usage, in_samples: int, out_samples: int, played: int | None) -> dict[str, Any]:
    return {
        "seconds": round(usage.seconds, 3),
        "units": usage.units,
        "units_late": usage.units_late,
        "spoken_units": usage.spoken_units,
        "in_samples": in_samples,
        "out_samples": out_samples,
        "played_samples": played,
    }


def _times(times: UnitTimes) -> dict[str, float | None]:
    names = ("wait", "encode", "prefill", "decode", "speech", "total")
    return {name: None if (value := getattr(times, name)) is None else _ms(value) for name in names}


def _ms(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1000, 1)
