"""What Realtime clients write: events, items and the session, as types. Bounds are those of the OpenAI API.

Omitted and null differ in a session update (null clears), so its fields are UNSET by default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from sensorium.server.schema import Input, Scalar
from sensorium.server.speech.schema import VoiceChoice

Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:-]*$")]
Text = Annotated[str, Meta(max_length=1 << 20)]
Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[int, Meta(ge=0, le=3_600_000)]
MaxTokens = Annotated[int, Meta(ge=1, le=1 << 20)] | Literal["inf"]
Modality = Literal["text", "audio"]
AudioName = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
BETA_FORMATS: dict[str, AudioName] = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}


# ---- session ------------------------------------------------------------------------------------------------------


class AudioFormat(Input, kw_only=True):
    type: AudioName = "audio/pcm"
    rate: Literal[8000, 16000, 24000, 48000] | None = None


class TurnDetection(Input, kw_only=True):
    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: Annotated[float, Meta(gt=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=10_000)] = 300
    silence_duration_ms: Annotated[int, Meta(ge=64, le=60_000)] = 500
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: Milliseconds | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None


class Transcription(Input, kw_only=True):
    model: str | None = None
    language: Annotated[str, Meta(max_length=16)] | None = None
    prompt: Annotated[str, Meta(max_length=4096)] | None = None


class NoiseReduction(Input, kw_only=True):
    type: Literal["near_field", "far_field"] | None = None


class AudioInput(Input, kw_only=True):
    format: AudioFormat | str | UnsetType = UNSET
    turn_detection: TurnDetection | UnsetType | None = UNSET
    transcription: Transcription | UnsetType | None = UNSET
    noise_reduction: NoiseReduction | UnsetType | None = UNSET


class AudioOutput(Input, kw_only=True):
    """How answers sound. Where the model does not speak it is kept and shown, and changes nothing."""

    format: AudioFormat | str | UnsetType = UNSET
    voice: VoiceChoice | UnsetType = UNSET
    speed: Annotated[float, Meta(ge=0.25, le=1.5)] | UnsetType = UNSET


class Audio(Input, kw_only=True):
    input: AudioInput | UnsetType = UNSET
    output: AudioOutput | UnsetType = UNSET


class FunctionTool(Input, kw_only=True):
    type: Literal["function"]
    name: Annotated[str, Meta(min_length=1, max_length=128)]
    description: Annotated[str, Meta(max_length=32768)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Input, kw_only=True):
    type: Literal["function"]
    name: str


class Answering(Input, kw_only=True):
    """Fields that a session and a single response have alike. Clients write null for those they leave out."""

    output_modalities: list[Modality] | UnsetType = UNSET
    modalities: list[Modality] | UnsetType = UNSET
    instructions: Text | UnsetType | None = UNSET
    tools: Annotated[list[FunctionTool], Meta(max_length=128)] | UnsetType | None = UNSET
    tool_choice: Literal["auto", "none", "required"] | FunctionChoice | UnsetType | None = UNSET
    parallel_tool_calls: bool | UnsetType | None = UNSET
    max_output_tokens: MaxTokens | UnsetType | None = UNSET
    max_response_output_tokens: MaxTokens | UnsetType | None = UNSET
    temperature: Annotated[float, Meta(ge=0, le=2)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    top_k: Annotated[int, Meta(ge=-1)] | UnsetType = UNSET
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | UnsetType = UNSET
    seed: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    prompt: UnsetType | None = UNSET
    reasoning: UnsetType | None = UNSET
    voice: VoiceChoice | UnsetType = UNSET
    audio: Audio | UnsetType = UNSET
    output_audio_format: str | UnsetType = UNSET


class SessionUpdate(Answering, kw_only=True):
    """`session` of session.update, in today's spelling or in that of the beta (flat names)."""

    type: Literal["realtime", "transcription"] | UnsetType = UNSET
    model: str | UnsetType = UNSET
    truncation: Literal["auto", "disabled"] | UnsetType = UNSET
    include: list[str] | UnsetType | None = UNSET
    tracing: Literal["auto"] | dict[str, Scalar] | UnsetType | None = UNSET
    turn_detection: TurnDetection | UnsetType | None = UNSET
    input_audio_format: str | UnsetType = UNSET
    input_audio_transcription: Transcription | UnsetType | None = UNSET
    input_audio_noise_reduction: NoiseReduction | UnsetType | None = UNSET


# ---- items --------------------------------------------------------------------------------------------------------


class Part(Input, kw_only=True):
    type: Literal["input_text", "input_audio", "input_image", "text", "audio", "output_text", "output_audio"]
    text: Text | None = None
    audio: str | None = None
    transcript: Text | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None


class ItemInput(Input, kw_only=True):
    """An item of a conversation, or with type item_reference one that is in it already."""

    type: Literal["message", "function_call", "function_call_output", "item_reference"]
    id: Id | None = None
    object: str | None = None
    status: str | None = None
    role: Literal["system", "user", "assistant"] | None = None
    content: Annotated[list[Part], Meta(max_length=256)] | None = None
    call_id: Id | None = None
    name: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    arguments: Text | None = None
    output: Text | None = None


# ---- events -------------------------------------------------------------------------------------------------------


class ResponseInput(Answering, kw_only=True):
    conversation: Literal["auto", "none"] = "auto"
    input: Annotated[list[ItemInput], Meta(max_length=1024)] | None = None
    metadata: Annotated[dict[str, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None = None


class ClientEvent(Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    event_id: Annotated[str, Meta(max_length=512)] | None = None


class UpdateSession(ClientEvent, tag="session.update"):
    session: SessionUpdate


class AppendAudio(ClientEvent, tag="input_audio_buffer.append"):
    audio: str


class CommitAudio(ClientEvent, tag="input_audio_buffer.commit"):
    pass


class ClearAudio(ClientEvent, tag="input_audio_buffer.clear"):
    pass


class ClearOutput(ClientEvent, tag="output_audio_buffer.clear"):
    pass


class CreateItem(ClientEvent, tag="conversation.item.create"):
    item: ItemInput
    previous_item_id: str | None = None


class RetrieveItem(ClientEvent, tag="conversation.item.retrieve"):
    item_id: str


class DeleteItem(ClientEvent, tag="conversation.item.delete"):
    item_id: str


class TruncateItem(ClientEvent, tag="conversation.item.truncate"):
    item_id: str
    content_index: int = 0
    audio_end_ms: Annotated[int, Meta(ge=0)] = 0


class CreateResponse(ClientEvent, tag="response.create"):
    response: ResponseInput | None = None


class CancelResponse(ClientEvent, tag="response.cancel"):
    response_id: str | None = None


Event = (
    UpdateSession
    | AppendAudio
    | CommitAudio
    | ClearAudio
    | ClearOutput
    | CreateItem
    | RetrieveItem
    | DeleteItem
    | TruncateItem
    | CreateResponse
    | CancelResponse
)
EVENT: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
KINDS: frozenset[str] = frozenset(kind.__struct_config__.tag for kind in get_args(Event))


def read_object(data: str | bytes) -> dict[str, Any]:
    """A message as it is; an empty object where it is another kind of JSON, or none at all."""
    try:
        tree: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return cast("dict[str, Any]", tree) if isinstance(tree, dict) else {}
