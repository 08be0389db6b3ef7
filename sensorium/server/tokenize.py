"""POST /tokenize and /detokenize: what a prompt or a conversation is in tokens, media included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.routing import Route

from sensorium.config import ServerConfig
from sensorium.errors import RequestError, UnsupportedError
from sensorium.server.chat_plan import functions_of, to_messages, to_options
from sensorium.server.chat_schema import (
    ChatRequest,
    MediaOptions,
    Messages,
    ProcessorOptions,
    TemplateText,
    TemplateVariables,
    Tool,
)
from sensorium.server.door import JsonDoor, State
from sensorium.server.prompts import prepare_text
from sensorium.server.schema import Input, TokenId
from sensorium.server.served import Served
from sensorium.types import Prompt

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

CHAT_ONLY = (
    "add_generation_prompt",
    "continue_final_message",
    "chat_template",
    "chat_template_kwargs",
    "tools",
    "mm_processor_kwargs",
    "media_io_kwargs",
)


class TokenizeRequest(Input, kw_only=True):
    """POST /tokenize, with `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    """Whether a prompt gets the tokens that this model's prompts begin with; a conversation has its template's."""
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: TemplateText | None = None
    chat_template_kwargs: TemplateVariables | None = None
    tools: Annotated[list[Tool], Meta(max_length=256)] | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    media_io_kwargs: MediaOptions | None = None


class Tokenized(Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None
    multimodal_tokens: dict[str, int] | UnsetType = UNSET
    """Positions that media take, by modality."""


class DetokenizeRequest(Input, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=1 << 20)]


class Detokenized(Struct):
    prompt: str


def tokenize_routes(served: Served, config: ServerConfig) -> list[Route]:
    async def tokenize(request: TokenizeRequest, state: State) -> Tokenized:
        client = served.client()
        prompt = await _prepare(client, request, config)
        spelled = [spell(client, token_id) for token_id in prompt.ids] if request.return_token_strs else None
        return Tokenized(
            count=len(prompt.ids),
            max_model_len=client.max_model_len,
            tokens=list(prompt.ids),
            token_strs=spelled,
            multimodal_tokens=prompt.media_tokens() or UNSET,
        )

    async def detokenize(request: DetokenizeRequest, state: State) -> Detokenized:
        tokenizer = served.client().tokenizer
        for index, token_id in enumerate(request.tokens):
            if token_id >= tokenizer.vocab_size:
                reason = f"tokens[{index}]: {token_id} is outside the vocabulary of {tokenizer.vocab_size}"
                raise RequestError(reason, param=f"tokens[{index}]")
        return Detokenized(tokenizer.decode(request.tokens, skip_special=False))

    doors: dict[str, JsonDoor[Any]] = {
        "/tokenize": JsonDoor(served, config, TOKENIZE, tokenize),
        "/detokenize": JsonDoor(served, config, DETOKENIZE, detokenize),
    }
    return [Route(path, door, methods=["POST"]) for path, door in doors.items()]


def spell(client: EngineClient, token_id: int) -> str:
    """A token as text; bytes that are no whole character come as the replacement character."""
    return client.tokenizer.token_bytes(token_id).decode("utf-8", "replace")


async def _prepare(client: EngineClient, request: TokenizeRequest, config: ServerConfig) -> Prompt:
    if (request.prompt is None) == (request.messages is None):
        raise RequestError("prompt: give either prompt or messages", param="prompt")
    if request.messages is None:
        for name in CHAT_ONLY:
            if getattr(request, name) is not None:
                raise RequestError(f"{name}: only with messages", param=name)
        return await prepare_text(client, request.prompt or "", special=request.add_special_tokens is not False)
    if request.add_special_tokens:
        reason = "add_special_tokens: a conversation has the special tokens of its chat template"
        raise UnsupportedError(reason, param="add_special_tokens")
    fields: dict[str, Any] = {name: getattr(request, name) for name in CHAT_ONLY}
    chat = ChatRequest(messages=request.messages, **fields)
    in_prompt = tuple({"type": "function", "function": function} for function in functions_of(chat))
    return await client.aprepare_chat(to_messages(chat, config), to_options(chat, config, in_prompt))


TOKENIZE = msgspec.json.Decoder(TokenizeRequest)
DETOKENIZE = msgspec.json.Decoder(DetokenizeRequest)
