"""The chat completions API as types. What messages may hold is in messages.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from sensorium.server.schema import (
    ChoiceLogprobs,
    Choices,
    Groups,
    Input,
    Key,
    Label,
    Priority,
    PromptLogprob,
    RequestTimings,
    Salt,
    SamplingFields,
    Scalar,
    StreamInterval,
    StreamOptions,
    TopCount,
    Truncation,
    UsageReport,
)
from sensorium.server.speech.schema import VoiceChoice

_PART = {
    "type": "object",
    "description": "text, refusal, image_url, video_url, audio_url, input_audio, image_embeds, audio_embeds, "
    "video_embeds, input_text, input_image, image, video, audio; media with an optional uuid, null with one for an "
    "item sent before",
}
_PARTS = {"type": "array", "items": {"anyOf": [{"type": "string"}, _PART]}}
ChatMessage = Annotated[
    dict[str, Any],
    Meta(
        extra_json_schema={
            "properties": {
                "role": {"type": "string", "description": "system, developer, user, assistant, tool or function"},
                "content": {"anyOf": [{"type": "string"}, {"type": "null"}, _PART, _PARTS]},
                "name": {"type": "string"},
                "tool_calls": {"type": "array", "items": {"type": "object"}},
                "tool_call_id": {"type": "string"},
                "reasoning": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
            "required": ["role"],
        }
    ),
]
Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=2048)]
TemplateText = Annotated[str, Meta(min_length=1, max_length=1 << 20)]
TemplateVariables = Annotated[dict[str, Scalar], Meta(max_length=32)]
MediaOptions = dict[Literal["image", "video", "audio"], Annotated[dict[str, Any], Meta(max_length=32)]]
ProcessorOptions = Annotated[dict[str, Scalar | Groups | dict[str, int]], Meta(max_length=32)]


# ---- request ------------------------------------------------------------------------------------------------------


class Function(Input, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:-]*$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema."""
    strict: bool | None = None


class Tool(Input, kw_only=True):
    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Input, kw_only=True):
    name: str


class NamedTool(Input, kw_only=True):
    function: NamedFunction
    type: Literal["function"] = "function"


class AudioChoice(Input, kw_only=True):
    """How a spoken answer sounds. format: wav by default, in a stream pcm16; pcm16 is mono at 24 kHz."""

    voice: VoiceChoice | None = None
    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"] | None = None


class HarmlessFields(SamplingFields, kw_only=True):
    """What clients of OpenAI's API send without a need for it; accepted, and nothing but that unless said."""

    user: Label | None = None
    """Written to the access log."""
    session_id: Label | None = None
    """Written to the access log."""
    metadata: Annotated[dict[Key, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None = None
    """Sent back with the answer."""
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    """Sent back with the answer."""
    store: bool | None = None
    prediction: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: Any = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    safety_identifier: str | None = None


WITHOUT_EFFECT = tuple(
    name
    for name in HarmlessFields.__struct_fields__
    if name not in SamplingFields.__struct_fields__
    and name not in ("user", "session_id", "metadata", "service_tier", "store", "safety_identifier")
    and not name.startswith("prompt_cache")
)
"""Those that are worth a line in the log, once."""


class ChatRequest(HarmlessFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Messages
    model: str | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    """The same as n."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[Tool], Meta(max_length=256)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    """False keeps the first call."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool | None = None
    echo: bool | None = None
    """Begin the answer with the last message, where its role is that of the answer."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    documents: Annotated[list[dict[str, Any]], Meta(max_length=256)] | None = None
    chat_template: TemplateText | None = None
    chat_template_kwargs: TemplateVariables | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    """How media become rows, e.g. max_slice_nums; which options there are is the model's matter."""
    media_io_kwargs: MediaOptions | None = None
    """How media are read, e.g. {"video": {"num_frames": 8}}."""
    prompt_logprobs: TopCount | None = None
    truncate_prompt_tokens: Truncation | None = None
    """Keep so many tokens of the prompt; -1 is as many as leave room for the answer."""
    truncation_side: Literal["left", "right"] | None = None
    cache_salt: Salt | None = None
    """Requests with different salts share no cached work."""
    priority: Priority | None = None
    """Smaller numbers are served first, where the server's scheduling policy is priority."""
    request_id: Key | None = None
    """The end of the answer's id; the header X-Request-Id wins."""
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_prompt_text: bool | None = None
    use_beam_search: bool | None = None
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None
    stream_interval: StreamInterval | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Meta(min_length=1)] | None = None
    """With audio the answer is spoken; its text is the transcript of the sound."""
    audio: AudioChoice | None = None


UNSUPPORTED = {
    "functions": "calling functions by the old fields (send tools)",
    "function_call": "calling functions by the old fields (send tool_choice)",
    "logits_processors": "code from a request",
}
"""Fields of OpenAI's or vLLM's API that this server does not offer, and what it would have to do for them."""


# ---- response -----------------------------------------------------------------------------------------------------


class FunctionText(Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCall(Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionText


class ToolCallDelta(Struct, kw_only=True):
    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionText


class ReplyAudio(Struct, kw_only=True):
    """data: base64. A later message of the assistant may name the id in place of the transcript, until expires_at."""

    id: str
    data: str
    expires_at: int
    transcript: str


class AssistantReply(Struct, kw_only=True):
    role: str
    content: str | None
    refusal: None = None
    annotations: None = None
    audio: ReplyAudio | None = None
    function_call: None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET
    reasoning: str | None = None
    reasoning_content: str | None = None
    """An older name of the same."""


class Choice(Struct, kw_only=True):
    index: int
    message: AssistantReply
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    service_tier: str | None = None
    system_fingerprint: str | None
    usage: UsageReport
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_text: str | UnsetType = UNSET
    kv_transfer_params: None = None
    metadata: dict[str, str] | UnsetType = UNSET
    metrics: RequestTimings | UnsetType = UNSET


class DeltaAudio(Struct, kw_only=True):
    id: str | UnsetType = UNSET
    data: str | UnsetType = UNSET
    transcript: str | UnsetType = UNSET
    expires_at: int | UnsetType = UNSET


class Delta(Struct, kw_only=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    audio: DeltaAudio | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str | None
    usage: UsageReport | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET
    metrics: RequestTimings | UnsetType = UNSET


CHAT_REQUEST = msgspec.json.Decoder(ChatRequest)
