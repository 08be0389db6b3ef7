"""The chat completions API as types: what is not written here is refused, with the path of what was wrong.

Bounds are those of the OpenAI API where it has any. `X | None = None` means that null is the same as leaving it out.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Label = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[\x20-\x7e]*$")]
Key = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]*$")]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
TokenCount = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Url = Annotated[str, Meta(min_length=1)]
Scalar = bool | int | float | Annotated[str, Meta(max_length=1024)] | None
Groups = Annotated[list[Annotated[list[int], Meta(max_length=256)]], Meta(max_length=1024)]

UNSUPPORTED = {
    "tools": "calling tools",
    "tool_choice": "calling tools",
    "parallel_tool_calls": "calling tools",
    "functions": "calling functions",
    "function_call": "calling functions",
    "response_format": "an answer format other than text",
    "structured_outputs": "structured output",
    "guided_json": "structured output",
    "guided_regex": "structured output",
    "guided_choice": "structured output",
    "guided_grammar": "structured output",
    "modalities": "an answer in anything but text",
    "audio": "an answer in speech",
    "prediction": "predicted output",
    "web_search_options": "web search",
    "reasoning_effort": "an effort setting (chat_template_kwargs may switch thinking)",
    "store": "storing answers",
    "service_tier": "a service tier",
    "best_of": "best_of",
    "use_beam_search": "beam search",
    "prompt_logprobs": "prompt_logprobs",
    "bad_words": "bad_words",
    "allowed_token_ids": "allowed_token_ids",
    "truncate_prompt_tokens": "truncating the prompt",
    "echo": "echo",
    "chat_template": "a template chosen by the client",
    "documents": "documents",
}
"""Fields of OpenAI's or vLLM's API that this server does not offer, and what it would have to do for them."""


class Input(Struct, forbid_unknown_fields=True):
    """What clients write: strict, so that a misspelt field is an error and not a surprise."""


# ---- messages -----------------------------------------------------------------------------------------------------


class ImageUrl(Input, kw_only=True):
    url: Url
    detail: Literal["auto", "low", "high"] | None = None


class VideoUrl(Input, kw_only=True):
    url: Url


class AudioUrl(Input, kw_only=True):
    url: Url


class InputAudio(Input, kw_only=True):
    data: Url
    """Base64. The format is recognised from the bytes; `format` is only a hint."""
    format: Key | None = None


class TextPart(Input, kw_only=True, tag_field="type", tag="text"):
    text: str


class ImagePart(Input, kw_only=True, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class AudioPart(Input, kw_only=True, tag_field="type", tag="input_audio"):
    input_audio: InputAudio


class AudioUrlPart(Input, kw_only=True, tag_field="type", tag="audio_url"):
    audio_url: AudioUrl


class VideoPart(Input, kw_only=True, tag_field="type", tag="video_url"):
    video_url: VideoUrl


Part = TextPart | ImagePart | AudioPart | AudioUrlPart | VideoPart
Parts = Annotated[list[str | Part], Meta(min_length=1, max_length=256)]
Texts = Annotated[list[str | TextPart], Meta(min_length=1, max_length=256)]


class SystemMessage(Input, kw_only=True, tag_field="role", tag="system"):
    content: str | Parts


class DeveloperMessage(Input, kw_only=True, tag_field="role", tag="developer"):
    content: str | Parts


class UserMessage(Input, kw_only=True, tag_field="role", tag="user"):
    content: str | Parts


class AssistantMessage(Input, kw_only=True, tag_field="role", tag="assistant"):
    """An earlier answer. The null fields are those of our own replies, so that they can be sent back as they came."""

    content: str | Texts
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None


class ToolMessage(Input, kw_only=True, tag_field="role", tag="tool"):
    content: str | Texts
    tool_call_id: Label | None = None


ChatMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


# ---- request ------------------------------------------------------------------------------------------------------


class StreamOptions(Input, kw_only=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class ResponseFormat(Input, kw_only=True):
    type: Literal["text"] = "text"


class VideoOptions(Input, kw_only=True):
    num_frames: Annotated[int, Meta(ge=1, le=4096)] | None = None
    fps: Annotated[float, Meta(gt=0, le=60)] | None = None


class MediaIoOptions(Input, kw_only=True):
    video: VideoOptions | None = None


class SamplingFields(Input, kw_only=True):
    """How tokens are chosen and when to stop; null means the model's own default."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    """Wins over max_tokens. Without either, the answer may fill the context."""
    min_tokens: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None = None
    stop: StopText | Annotated[list[StopText], Meta(max_length=16)] | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=64)] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class ChatRequest(SamplingFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=2048)]
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[dict[str, Scalar], Meta(max_length=32)] | None = None
    mm_processor_kwargs: Annotated[dict[str, Scalar | Groups], Meta(max_length=32)] | None = None
    """How media become rows, e.g. max_slice_nums; which options there are is the model's matter."""
    media_io_kwargs: MediaIoOptions | None = None
    user: Label | None = None
    """Written to the access log."""
    metadata: Annotated[dict[Key, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None = None
    """Sent back with the answer."""
    cache_salt: Key | None = None
    """Requests with different salts share no cached work."""
    priority: Annotated[int, Meta(ge=0, le=1000)] | None = None
    """Larger numbers wait behind smaller ones."""
    # What the OpenAI SDK and others send of features that are not here, as long as they ask for nothing.
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Meta(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


# ---- response -----------------------------------------------------------------------------------------------------


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(Struct):
    content: list[ContentLogprob]


class PromptTokensDetails(Struct):
    cached_tokens: int = 0
    image_tokens: int = 0
    audio_tokens: int = 0
    video_tokens: int = 0


class UsageReport(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AssistantReply(Struct):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(Struct, kw_only=True):
    index: int
    message: AssistantReply
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str
    stop_reason: int | str | None = None


class ChatCompletion(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: UsageReport
    system_fingerprint: str
    metadata: dict[str, str] | UnsetType = UNSET


class Delta(Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | UnsetType | None = UNSET


class ChatChunk(Struct, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageReport | UnsetType | None = UNSET
    system_fingerprint: str


class ModelCard(Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "sensorium"
    root: str
    parent: str | None = None
    max_model_len: int
    modalities: list[str]


class ModelList(Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


CHAT_REQUEST = msgspec.json.Decoder(ChatRequest)
