"""The Responses API as types, and its input as a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from sensorium.errors import RequestError, UnsupportedError
from sensorium.inline import behind
from sensorium.server.body import decode_fields
from sensorium.server.chat_schema import MediaOptions, ProcessorOptions, TemplateText, TemplateVariables
from sensorium.server.schema import (
    Input,
    Key,
    Label,
    Priority,
    Salt,
    StreamInterval,
    TokenCount,
    TokenFields,
    TopCount,
    Url,
)
from sensorium.types import MediaRef, Message, Role

UNSUPPORTED = {
    "prompt": "templates of prompts",
    "conversation": "stored conversations",
    "context_management": "editing the conversation",
    "stream_options": "padding of streams",
    "max_tool_calls": "tools of the server",
    "moderation": "moderation",
}


# ---- input --------------------------------------------------------------------------------------------------------


class InputText(Input, kw_only=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(Input, kw_only=True, tag_field="type", tag="output_text"):
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class Refusal(Input, kw_only=True, tag_field="type", tag="refusal"):
    refusal: str


class InputImage(Input, kw_only=True, tag_field="type", tag="input_image"):
    image_url: Url
    detail: Literal["auto", "low", "high", "original"] | None = None


class AudioData(Input, kw_only=True):
    data: Url
    format: Key | None = None


class InputAudio(Input, kw_only=True, tag_field="type", tag="input_audio"):
    input_audio: AudioData


class InputVideo(Input, kw_only=True, tag_field="type", tag="input_video"):
    """Not of OpenAI: a video by its URL."""

    video_url: Url


Content = InputText | OutputText | Refusal | InputImage | InputAudio | InputVideo
Status = Literal["in_progress", "completed", "incomplete"]


class MessageItem(Input, kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Content], Meta(min_length=1, max_length=1024)]
    type: Literal["message"] | None = None
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class CallItem(Input, kw_only=True):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class CallOutputItem(Input, kw_only=True):
    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText | InputImage]
    id: str | None = None
    status: Status | None = None


class ReasoningText(Input, kw_only=True):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Input, kw_only=True):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[ReasoningText] | None = None
    content: list[ReasoningText] | None = None
    encrypted_content: None = None
    status: Status | None = None


ITEMS: dict[str, type[Input]] = {
    "message": MessageItem,
    "function_call": CallItem,
    "function_call_output": CallOutputItem,
    "reasoning": ReasoningItem,
}


# ---- request ------------------------------------------------------------------------------------------------------


class FunctionTool(Input, kw_only=True):
    type: Literal["function"]
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Input, kw_only=True):
    type: Literal["function"]
    name: str


class TextFormat(Input, kw_only=True, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Input, kw_only=True, tag_field="type", tag="json_object"):
    pass


class JsonSchemaFormat(Input, kw_only=True, tag_field="type", tag="json_schema"):
    schema: dict[str, Any]
    name: Label | None = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(Input, kw_only=True):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Input, kw_only=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto"] | None = None
    """Accepted: what was thought comes whole, not in summary."""


class ResponsesRequest(TokenFields, kw_only=True):
    """POST /v1/responses."""

    input: Annotated[str, Meta(min_length=1)] | Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=2048)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    top_logprobs: TopCount | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["disabled"] | None = None
    stream: bool | None = None
    store: bool | None = None
    """Kept only by servers that were told to keep answers."""
    background: bool | None = None
    previous_response_id: Key | None = None
    metadata: Annotated[dict[Key, Annotated[str, Meta(max_length=512)]], Meta(max_length=16)] | None = None
    user: Label | None = None
    # Sent by clients; there is nothing here that they could change.
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    # Of vLLM, which also has structured_outputs in the place of text.format.
    chat_template: TemplateText | None = None
    chat_template_kwargs: TemplateVariables | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    media_io_kwargs: MediaOptions | None = None
    stream_interval: StreamInterval | None = None
    session_id: Label | None = None
    request_id: Key | None = None
    """For the access log: an answer that is kept has a name of the server's choice."""
    cache_salt: Salt | None = None
    priority: Priority | None = None


class InputDetails(Struct):
    cached_tokens: int


class OutputDetails(Struct):
    reasoning_tokens: int


class ResponseUsage(Struct, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Response(Struct, kw_only=True):
    """What every event that carries the whole answer, and the answer itself, look like."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    error: dict[str, str] | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    background: bool
    prompt_cache_key: str | None
    reasoning: ReasoningOptions | None
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: TextOptions
    tool_choice: Any
    tools: list[FunctionTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    metadata: dict[str, str]
    user: str | None


# ---- conversations ------------------------------------------------------------------------------------------------


def to_messages(request: ResponsesRequest) -> list[Message]:
    """The input as a conversation, without the instructions. Media carry their place for error messages."""
    if isinstance(request.input, str):
        return [Message("user", (request.input,))]
    messages: list[Message] = []
    for number, raw in enumerate(request.input):
        place = f"input[{number}]"
        _append(messages, _item(raw, place), place)
    return messages


def _item(raw: Mapping[str, Any], place: str) -> Input:
    kind = raw.get("type") or ("message" if "role" in raw else None)
    if not isinstance(kind, str) or kind not in ITEMS:
        known = ", ".join(ITEMS)
        raise UnsupportedError(f"{place}.type: no items of that type here; known: {known}", param=f"{place}.type")
    try:
        return decode_fields(dict(raw), ITEMS[kind], {})
    except RequestError as error:
        param = f"{place}.{error.param}" if error.param else place
        raise RequestError(f"{place}.{error.message}", param=param) from None


def _append(messages: list[Message], item: Input, place: str) -> None:
    """Reasoning, words and calls of one turn are items here and one message for chat templates."""
    last = messages[-1] if messages and messages[-1].role == "assistant" else None
    if isinstance(item, MessageItem):
        content = [item.content] if isinstance(item.content, str) else item.content
        parts = tuple(_part(part, f"{place}.content[{number}]") for number, part in enumerate(content))
        role: Role = "system" if item.role == "developer" else item.role
        if role == "assistant" and last is not None and not any(last.parts) and "tool_calls" not in last.extra:
            messages[-1] = Message(role, parts, last.extra)
        else:
            messages.append(Message(role, parts))
    elif isinstance(item, ReasoningItem):
        text = "".join(part.text for part in item.content or item.summary or ())
        messages.append(Message("assistant", ("",), {"reasoning_content": text}))
    elif isinstance(item, CallItem):
        try:
            arguments = json.loads(item.arguments or "{}")
        except ValueError:
            raise RequestError(f"{place}.arguments: not valid JSON", param=f"{place}.arguments") from None
        function = {"name": item.name, "arguments": arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        if last is None:
            messages.append(Message("assistant", ("",), {"tool_calls": [call]}))
        else:
            calls = [*last.extra.get("tool_calls", ()), call]
            messages[-1] = Message("assistant", last.parts, {**last.extra, "tool_calls": calls})
    elif isinstance(item, CallOutputItem):
        output = [item.output] if isinstance(item.output, str) else item.output
        parts = tuple(_part(part, f"{place}.output[{number}]") for number, part in enumerate(output))
        messages.append(Message("tool", parts, {"tool_call_id": item.call_id}))


def _part(part: str | Content, place: str) -> str | MediaRef:
    match part:
        case str():
            return part
        case InputText() | OutputText():
            return part.text
        case Refusal():
            return part.refusal
        case InputImage():
            options = {"max_slice_nums": 1} if part.detail == "low" else {}
            return MediaRef("image", part.image_url, f"{place}.image_url", options)
        case InputVideo():
            return MediaRef("video", part.video_url, f"{place}.video_url")
        case InputAudio():
            data = part.input_audio.data
            source = data if data.startswith("data:") else behind("data:audio/any;base64,", data)
            return MediaRef("audio", source, f"{place}.input_audio")


RESPONSES_REQUEST = msgspec.json.Decoder(ResponsesRequest)
