"""Speech and voices as OpenAI's API writes them, as types."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from sensorium.media.encode import MAX_SPEED, MIN_SPEED, SoundFormat
from sensorium.server.schema import Input

MAX_TEXT = 4096
"""Characters that one request may have read aloud."""
VoiceName = Annotated[str, Meta(min_length=1, max_length=128)]
Speed = Annotated[float, Meta(ge=MIN_SPEED, le=MAX_SPEED)]


class VoiceId(Input):
    id: VoiceName


VoiceChoice = VoiceName | VoiceId
"""A voice by its name or its id."""


def chosen(voice: VoiceChoice | None) -> str | None:
    """The name or id alone."""
    return voice.id if isinstance(voice, VoiceId) else voice


class CreateSpeech(Input, kw_only=True):
    """POST /v1/audio/speech."""

    input: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    model: str | None = None
    voice: VoiceChoice | None = None
    """Its name or {"id": ...}; by default the model's own."""
    response_format: SoundFormat | None = None
    """mp3 by default; pcm is 16-bit mono at 24 kHz without a head."""
    stream_format: Literal["audio", "sse"] | None = None
    """audio, the default, is the bytes of the file; sse wraps pieces of it in events."""
    speed: Speed | None = None
    instructions: Annotated[str, Meta(max_length=MAX_TEXT)] | None = None
    """How to speak, said to the model before the text."""


class SpeechUsage(Struct):
    """Tokens of the text, codes of the sound."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class SpeechDelta(Struct):
    """One event of a stream of sound; audio is base64."""

    audio: str
    type: Literal["speech.audio.delta"] = "speech.audio.delta"


class SpeechDone(Struct):
    usage: SpeechUsage
    type: Literal["speech.audio.done"] = "speech.audio.done"


# ---- voices -------------------------------------------------------------------------------------------------------


class CreateVoice(Input, kw_only=True):
    """The fields of POST /v1/audio/voices beside the upload `audio_sample`."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f/\\]+$")]
    type: Literal["audio_sample"] = "audio_sample"
    consent: Annotated[str, Meta(max_length=1024)] | None = None
    """What says that the speaker agrees, in the client's words; kept with the voice."""


class VoiceCard(Struct, kw_only=True):
    id: str
    object: Literal["audio.voice"] = "audio.voice"
    name: str
    created_at: int
    type: Literal["audio_sample"] = "audio_sample"
    consent: str | None = None


class VoiceList(Struct):
    data: list[VoiceCard]
    object: Literal["list"] = "list"
    has_more: bool = False


class VoiceDeleted(Struct):
    id: str
    deleted: bool = True
    object: Literal["audio.voice.deleted"] = "audio.voice.deleted"


CREATE_SPEECH = msgspec.json.Decoder(CreateSpeech)
