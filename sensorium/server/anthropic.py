"""The Anthropic Messages API as types, and between it and the engine's: conversations in, content blocks out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from sensorium.errors import RequestError
from sensorium.inline import behind
from sensorium.server.errors import MAX_MESSAGE, describe, printable
from sensorium.server.schema import Input, Label, TokenCount, Url
from sensorium.server.sse import frame
from sensorium.types import MediaRef, Message, Role

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.:-]{1,128}$")]
Id = Annotated[str, Meta(min_length=1, max_length=256)]

UNSUPPORTED = {
    "mcp_servers": "tools of MCP servers",
    "container": "containers",
    "context_management": "editing the conversation",
    "speed": "a speed setting",
    "diagnostics": "diagnostics",
    "inference_geo": "choosing a region",
}


# ---- request ------------------------------------------------------------------------------------------------------


class CacheControl(Input, kw_only=True):
    """Accepted: prompts are cached here whether or not they are marked."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Input, kw_only=True, tag_field="type", tag="text"):
    text: str
    cache_control: CacheControl | None = None
    citations: None = None


class Base64Source(Input, kw_only=True, tag_field="type", tag="base64"):
    media_type: Annotated[str, Meta(pattern=r"^[a-z]+/[a-z0-9.+-]+$")]
    data: Url


class UrlSource(Input, kw_only=True, tag_field="type", tag="url"):
    url: Url


class ImageBlock(Input, kw_only=True, tag_field="type", tag="image"):
    source: Base64Source | UrlSource
    cache_control: CacheControl | None = None


class ToolUseBlock(Input, kw_only=True, tag_field="type", tag="tool_use"):
    id: Id
    name: ToolName
    input: dict[str, Any]
    cache_control: CacheControl | None = None


class ToolResultBlock(Input, kw_only=True, tag_field="type", tag="tool_result"):
    tool_use_id: Id
    content: str | list[TextBlock | ImageBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


class ThinkingBlock(Input, kw_only=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Input, kw_only=True, tag_field="type", tag="redacted_thinking"):
    """Of another model: there is nothing in it that this one could read."""

    data: str


Block = TextBlock | ImageBlock | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock


class Turn(Input, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | Annotated[list[Block], Meta(max_length=1024)]


class Tool(Input, kw_only=True):
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None


class AutoChoice(Input, kw_only=True, tag_field="type", tag="auto"):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Input, kw_only=True, tag_field="type", tag="any"):
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Input, kw_only=True, tag_field="type", tag="tool"):
    name: ToolName
    disable_parallel_tool_use: bool | None = None


class NoChoice(Input, kw_only=True, tag_field="type", tag="none"):
    pass


class ThinkingOn(Input, kw_only=True, tag_field="type", tag="enabled"):
    budget_tokens: Annotated[int, Meta(ge=1024)]


class ThinkingAdaptive(Input, kw_only=True, tag_field="type", tag="adaptive"):
    """The model thinks as long as it likes."""

    display: Literal["summarized"] | None = None


class ThinkingOff(Input, kw_only=True, tag_field="type", tag="disabled"):
    pass


class Metadata(Input, kw_only=True):
    user_id: Label | None = None


class JsonFormat(Input, kw_only=True, tag_field="type", tag="json_schema"):
    schema: dict[str, Any]


class OutputConfig(Input, kw_only=True):
    format: JsonFormat | None = None


class Conversation(Input, kw_only=True):
    """What counting tokens and answering have in common."""

    model: str
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=2048)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: AutoChoice | AnyChoice | NamedChoice | NoChoice | None = None
    thinking: ThinkingOn | ThinkingAdaptive | ThinkingOff | None = None


class CountRequest(Conversation, kw_only=True):
    """POST /v1/messages/count_tokens."""


class MessagesRequest(Conversation, kw_only=True):
    """POST /v1/messages."""

    max_tokens: TokenCount
    stop_sequences: Annotated[list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=4)] | None = (
        None
    )
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    metadata: Metadata | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    service_tier: Literal["auto", "standard_only"] | None = None


# ---- reply --------------------------------------------------------------------------------------------------------


class TextOut(Struct, kw_only=True, tag_field="type", tag="text"):
    text: str
    citations: None = None


class ThinkingOut(Struct, kw_only=True, tag_field="type", tag="thinking"):
    thinking: str
    signature: str = ""


class ToolUseOut(Struct, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Any


BlockOut = TextOut | ThinkingOut | ToolUseOut


class MessageUsage(Struct, kw_only=True):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class MessageOut(Struct, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[BlockOut]
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class TokenCountOut(Struct):
    input_tokens: int


class Event(Struct, kw_only=True):
    """Any event of a stream; which fields there are follows from the type."""

    type: str
    message: MessageOut | UnsetType = UNSET
    index: int | UnsetType = UNSET
    content_block: BlockOut | UnsetType = UNSET
    delta: dict[str, Any] | UnsetType = UNSET
    usage: dict[str, int] | UnsetType = UNSET


def event(type: str, **fields: Any) -> bytes:
    return frame(msgspec.json.encode(Event(type=type, **fields)), type)


# ---- errors -------------------------------------------------------------------------------------------------------

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: BaseException) -> bytes:
    """Any exception as this API's clients expect it. The field at fault leads the message: there is no other place."""
    status, body, _ = describe(error)
    detail = body.error
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    named = detail.param is not None and not detail.message.startswith(detail.param)
    message = printable(f"{detail.param}: {detail.message}" if named else detail.message)[:MAX_MESSAGE]
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})


# ---- conversations ------------------------------------------------------------------------------------------------


def to_messages(request: Conversation) -> list[Message]:
    """The conversation, its pictures as references that carry their place for error messages."""
    messages: list[Message] = []
    if request.system:
        texts = [request.system] if isinstance(request.system, str) else [block.text for block in request.system]
        messages.append(Message("system", ("\n".join(texts),)))
    for number, turn in enumerate(request.messages):
        messages += _turn(turn, f"messages[{number}]")
    return messages


def to_tools(request: Conversation) -> list[dict[str, Any]]:
    """Name, description and parameters of each tool."""
    return [
        {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
        for tool in request.tools or ()
    ]


def _turn(turn: Turn, place: str) -> list[Message]:
    """One message, and before it one for each result of a tool: other APIs give those a role of their own."""
    if isinstance(turn.content, str):
        return [Message(turn.role, (turn.content,))]
    results: list[Message] = []
    parts: list[str | MediaRef] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for number, block in enumerate(turn.content):
        where = f"{place}.content[{number}]"
        match block:
            case TextBlock() | ImageBlock():
                parts.append(_part(block, where))
            case ToolResultBlock():
                _only(turn.role, "user", where)
                results.append(_result(block, where))
            case ToolUseBlock():
                _only(turn.role, "assistant", where)
                function = {"name": block.name, "arguments": block.input}
                calls.append({"id": block.id, "type": "function", "function": function})
            case ThinkingBlock():
                _only(turn.role, "assistant", where)
                thoughts.append(block.thinking)
            case RedactedThinkingBlock():
                _only(turn.role, "assistant", where)
    extra: dict[str, Any] = {"tool_calls": calls} if calls else {}
    if thoughts:
        extra["reasoning_content"] = "\n".join(thoughts)
    own = [Message(turn.role, tuple(parts or [""]), extra)] if parts or extra else []
    return [*results, *own]


def _only(role: Role, wanted: Role, where: str) -> None:
    if role != wanted:
        raise RequestError(f"{where}: such a block belongs in a message of the {wanted}", param=where)


def _result(block: ToolResultBlock, where: str) -> Message:
    content: Sequence[TextBlock | ImageBlock | str] = (
        [block.content] if isinstance(block.content, str) else block.content or [""]
    )
    parts = [
        item if isinstance(item, str) else _part(item, f"{where}.content[{number}]")
        for number, item in enumerate(content)
    ]
    if block.is_error:
        parts.insert(0, "Error: ")
    return Message("tool", tuple(parts), {"tool_call_id": block.tool_use_id})


def _part(block: TextBlock | ImageBlock, where: str) -> str | MediaRef:
    if isinstance(block, TextBlock):
        return block.text
    source = block.source
    if isinstance(source, UrlSource):
        return MediaRef("image", source.url, f"{where}.source.url")
    return MediaRef("image", behind(f"data:{source.media_type};base64,", source.data), f"{where}.source.data")
