"""What Realtime clients write: events, items and the session, as types. Bounds are those of the OpenAI API.

Omitted and null differ in a session update (null clears), so its fields are UNSET by default.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, cast, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from sensorium.errors import RequestError
from sensorium.server.schema import Input
from sensorium.server.speech.schema import VoiceChoice

Id = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:-]*$")]
Text = Annotated[str, Meta(max_length=1 << 20)]
Share = Annotated[float, Meta(ge=0, le=1)]
MaxTokens = Annotated[int, Meta(ge=1, le=1 << 20)] | Literal["inf"]
Modality = Literal["text", "audio"]
AudioName = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
BETA_FORMATS: dict[str, AudioName] = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}


# ---- session ------------------------------------------------------------------------------------------------------


class AudioFormat(Input, kw_only=True):
    type: AudioName = "audio/pcm"
    rate: Literal[8000, 16000, 24000, 48000] | None = None


Eagerness = Literal["low", "medium", "high", "auto"]


class TurnDetection(Input, kw_only=True):
    """As it is written: the fields of both kinds, of which session.py takes those of the one that is named."""

    type: Literal["server_vad", "semantic_vad"] = "server_vad"
    threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    silence_duration_ms: Annotated[int, Meta(ge=0, le=60_000)] | None = None
    idle_timeout_ms: Annotated[int, Meta(ge=1000, le=60_000)] | None = None
    eagerness: Eagerness | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class ServerVad(Struct, frozen=True, kw_only=True, tag="server_vad"):
    """A turn ends after a silence of one length."""

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    idle_timeout_ms: int | None = None
    create_response: bool = True
    interrupt_response: bool = True


class SemanticVad(Struct, frozen=True, kw_only=True, tag="semantic_vad"):
    """A turn ends where what was said sounds complete."""

    eagerness: Eagerness = "auto"
    create_response: bool = True
    interrupt_response: bool = True


class Transcription(Input, kw_only=True):
    model: str | None = None
    language: Annotated[str, Meta(max_length=16)] | None = None
    languages: Annotated[list[Annotated[str, Meta(max_length=16)]], Meta(max_length=1)] | None = None
    """Which it may be; a model here is told of one or finds out."""
    prompt: Annotated[str, Meta(max_length=4096)] | None = None
    keywords: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=256)] | None = None


class NoiseReduction(Input, kw_only=True):
    type: Literal["near_field", "far_field"] | None = None
    strength: None = None


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


class Reasoning(Input, kw_only=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


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
    reasoning: Reasoning | UnsetType | None = UNSET
    voice: VoiceChoice | UnsetType = UNSET
    audio: Audio | UnsetType = UNSET
    output_audio_format: str | UnsetType = UNSET


class TokenLimits(Input, kw_only=True):
    post_instructions: Annotated[int, Meta(ge=1)] | None = None
    """Tokens of the conversation without its instructions and tools."""


class Retention(Input, kw_only=True):
    """What to do with a conversation that is too long: leave out its oldest turns until this share is left."""

    type: Literal["retention_ratio"]
    retention_ratio: Share
    token_limits: TokenLimits | None = None


Truncation = Literal["auto", "disabled"] | Retention


class Tracing(Input, kw_only=True):
    workflow_name: Annotated[str, Meta(max_length=1024)] | None = None
    group_id: Annotated[str, Meta(max_length=1024)] | None = None
    metadata: Annotated[dict[str, Any], Meta(max_length=64)] | None = None


class SessionUpdate(Answering, kw_only=True):
    """`session` of session.update, in today's spelling or in that of the beta (flat names)."""

    type: Literal["realtime", "transcription"] | UnsetType = UNSET
    model: str | UnsetType = UNSET
    truncation: Truncation | UnsetType = UNSET
    include: list[Literal["item.input_audio_transcription.logprobs"]] | UnsetType | None = UNSET
    tracing: Literal["auto"] | Tracing | UnsetType | None = UNSET
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


class UpdateTranscriptionSession(ClientEvent, tag="transcription_session.update"):
    """The beta's, for a session that writes down speech and does nothing else."""

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
    audio_end_ms: Annotated[int, Meta(ge=0)]
    content_index: int = 0


class CreateResponse(ClientEvent, tag="response.create"):
    response: ResponseInput | None = None


class CancelResponse(ClientEvent, tag="response.cancel"):
    response_id: str | None = None


Event = (
    UpdateSession
    | UpdateTranscriptionSession
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
_PLACE = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`")


def read_event(data: str | bytes) -> Event:
    """Raises RequestError whose code says whether it is no JSON, no known event, or one with a fault."""
    try:
        return EVENT.decode(data)
    except msgspec.ValidationError as error:
        tree = read_object(data)
        kind = tree.get("type")
        if kind in KINDS:
            raise _fault(str(error), tree) from None
        if isinstance(kind, str):
            raise refusal("unknown_event_type", f"type: there is no event {kind[:64]!r}", "type") from None
        raise refusal("invalid_event", str(error), "type") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refusal("invalid_event", f"the message is not valid JSON: {error}") from None


def refusal(code: str, message: str, param: str | None = None) -> RequestError:
    """An error with the code that clients of these events know."""
    error = RequestError(message, param=param)
    error.code = code
    return error


def _fault(reason: str, tree: dict[str, Any]) -> RequestError:
    """What is wrong with an event of a known type, and where."""
    for name in ("session", "response"):
        holder: Any = tree.get(name)
        tools: Any = cast("dict[str, Any]", holder).get("tools") if isinstance(holder, dict) else None
        for number, tool in enumerate(cast("list[Any]", tools) if isinstance(tools, list) else ()):
            if isinstance(tool, dict) and cast("dict[str, Any]", tool).get("type") == "mcp":
                place = f"{name}.tools[{number}].type"
                return refusal("unsupported_tool", f"{place}: this server calls no MCP servers; give functions", place)
    place = match[1] if (match := _PLACE.search(reason)) else ""
    reason = _PLACE.sub("", reason)
    code = "invalid_value"
    if field := _FIELD.match(reason):
        place = f"{place}.{field[2]}".lstrip(".")
        is_missing = field[1] == "missing required"
        code = "missing_required_parameter" if is_missing else code
        reason = "this field is required" if is_missing else "unknown field"
    reason = reason[:1].lower() + reason[1:].replace("`", "").replace(" | null", "")
    return refusal(code, f"{place}: {reason}" if place else reason, place or None)


def read_object(data: str | bytes) -> dict[str, Any]:
    """A message as it is; an empty object where it is another kind of JSON, or none at all."""
    try:
        tree: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return cast("dict[str, Any]", tree) if isinstance(tree, dict) else {}
