"""POST /v1/messages and /v1/messages/count_tokens: the Anthropic API."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import RequestError
from sensorium.parsers.writing import CallDelta
from sensorium.server.answer_form import AnswerForm, Piece, Splitter, Thought
from sensorium.server.anthropic import (
    UNSUPPORTED,
    AnyChoice,
    BlockOut,
    Conversation,
    CountRequest,
    MessageOut,
    MessagesRequest,
    MessageUsage,
    NamedChoice,
    NoChoice,
    TextOut,
    ThinkingAdaptive,
    ThinkingOn,
    ThinkingOut,
    TokenCountOut,
    ToolUseOut,
    error_body,
    event,
    to_messages,
    to_tools,
)
from sensorium.server.door import JsonDoor, State, read_request
from sensorium.server.generation import Generation, Job, Origin, Progress, Tally, prepare_chat, unless_gone
from sensorium.server.metrics import Metrics
from sensorium.server.sampling import to_sampling
from sensorium.server.schema import SamplingFields
from sensorium.server.served import Served
from sensorium.server.sse import frame
from sensorium.server.tools import Choice, Named, ToolPlan, plan_tools
from sensorium.types import ChatOptions, Message, Prompt, SamplingParams, StructuredOutputs, TextDelta

_SAME = ("temperature", "top_k", "top_p", "max_tokens")


def messages_routes(served: Served, config: ServerConfig, metrics: Metrics) -> list[Route]:
    async def count(request: CountRequest, state: State) -> TokenCountOut:
        prompt, _ = await _prepare(served, config, request, _tools(request, config))
        return TokenCountOut(len(prompt.ids))

    counting = JsonDoor(served, config, msgspec.json.Decoder(CountRequest), count, unsupported=UNSUPPORTED)
    return [
        Route("/v1/messages", Messages(served, config, metrics), methods=["POST"]),
        Route("/v1/messages/count_tokens", counting, methods=["POST"]),
    ]


class Messages:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics) -> None:
        self._served = served
        self._config = config
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, _ = await read_request(self._served, self._config, MESSAGES_REQUEST, UNSUPPORTED, scope, receive)
        if isinstance(request.thinking, ThinkingOn) and request.thinking.budget_tokens >= request.max_tokens:
            raise RequestError("thinking.budget_tokens: must be less than max_tokens", param="thinking.budget_tokens")
        await unless_gone(receive, self._answer(request, scope, send))

    async def _answer(self, request: MessagesRequest, scope: Scope, send: Send) -> None:
        client = self._served.client()
        origin = Origin.of(scope, "msg_")
        origin.note(user=request.metadata.user_id if request.metadata else None)
        tools = _tools(request, self._config)
        prompt, unfinished = await _prepare(self._served, self._config, request, tools)
        request.messages.clear()  # inline pictures would otherwise stay in memory until the answer is done
        form = AnswerForm.of(self._config, prompt, tools, unfinished)
        sampling = _sampling(request, client.default_sampling)
        sampling = replace(sampling, **form.demands(sampling.structured_outputs, client))
        generation = Generation(client, self._metrics, origin, [Job(prompt, sampling)])
        codec = _Codec(origin.id, self._served.name, prompt, generation.tallies[0], form.splitter())
        if request.stream:
            await generation.stream(codec, send, self._config.sse_keep_alive_interval)
        else:
            await generation.reply(codec, send)


async def _prepare(
    served: Served, config: ServerConfig, request: Conversation, tools: ToolPlan
) -> tuple[Prompt, Message | None]:
    """The prompt, and the last message if it is the assistant's: then the answer continues it."""
    thinks = isinstance(request.thinking, ThinkingOn | ThinkingAdaptive)
    continues = request.messages[-1].role == "assistant"
    options = ChatOptions(
        add_generation_prompt=not continues,
        continue_final_message=continues,
        template_kwargs={**config.default_chat_template_kwargs, "enable_thinking": thinks},
        tools=tools.in_prompt,
        template=config.chat_template,
        content_format=config.chat_template_content_format,
        interleave=config.interleave_mm_strings,
    )
    messages = to_messages(request)
    prompt = await prepare_chat(served.client(), messages, options)
    return prompt, messages[-1] if continues else None


def _tools(request: Conversation, config: ServerConfig) -> ToolPlan:
    given = request.tool_choice
    parallel = given is None or isinstance(given, NoChoice) or not given.disable_parallel_tool_use
    choice: Choice = "auto"
    match given:
        case AnyChoice():
            choice = "required"
        case NamedChoice():
            choice = Named(given.name, "tool_choice.name")
        case NoChoice():
            choice = "none"
        case _:
            pass
    return plan_tools(to_tools(request), choice, config, parallel=parallel)


def _sampling(request: MessagesRequest, defaults: SamplingParams) -> SamplingParams:
    fields: dict[str, Any] = {name: getattr(request, name) for name in _SAME}
    sampling = to_sampling(SamplingFields(stop=request.stop_sequences, **fields), defaults)
    if isinstance(request.thinking, ThinkingOn):
        sampling = replace(sampling, thinking_token_budget=request.thinking.budget_tokens)
    if request.output_config and request.output_config.format:
        shape = StructuredOutputs(json=request.output_config.format.schema)
        sampling = replace(sampling, structured_outputs=shape)
    return sampling


@dataclass(slots=True)
class _Call:
    """A tool_use block while its input grows."""

    id: str
    name: str
    arguments: str = ""


class _Codec:
    """Messages and their events: a block after the other, each opened, filled and closed."""

    def __init__(self, id_: str, model: str, prompt: Prompt, tally: Tally, split: Splitter) -> None:
        self._id, self._model, self._tally, self._split = id_, model, tally, split
        self._input_tokens = len(prompt.ids)
        self._blocks: list[list[str] | _Call] = []
        self._kinds: list[str] = []
        self._frames: list[bytes] = []
        self.failure = _failure

    def take(self, number: int, event: Progress) -> None:
        if isinstance(event, TextDelta):
            self._add(self._split.feed(event.text))
        elif self._tally.finished is not None:
            self._add(self._split.finish())

    def reply(self) -> bytes:
        return msgspec.json.encode(self._message([self._block(number) for number in range(len(self._blocks))]))

    def opening(self) -> Sequence[bytes]:
        return [event("message_start", message=self._message([])), event("ping")]

    def news(self, numbers: Collection[int]) -> Sequence[bytes]:
        frames, self._frames = self._frames, []
        return frames

    def ending(self) -> Sequence[bytes]:
        frames = list(self.news(()))
        if self._blocks:
            frames.append(event("content_block_stop", index=len(self._blocks) - 1))
        reason, sequence = self._end()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = msgspec.to_builtins(self._usage())
        return [*frames, event("message_delta", delta=delta, usage=usage), event("message_stop")]

    def _add(self, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, CallDelta):
                if piece.name is not None:
                    call = _Call(f"toolu_{uuid.uuid4().hex[:24]}", piece.name)
                    self._open("tool_use", call, ToolUseOut(id=call.id, name=call.name, input={}))
                last = self._blocks[-1]
                if piece.arguments and isinstance(last, _Call):
                    last.arguments += piece.arguments
                    self._delta({"type": "input_json_delta", "partial_json": piece.arguments})
            elif isinstance(piece, Thought):
                self._write("thinking", piece.text, ThinkingOut(thinking=""))
            else:
                self._write("text", piece, TextOut(text=""))

    def _write(self, kind: str, text: str, empty: BlockOut) -> None:
        if not self._kinds or self._kinds[-1] != kind:
            self._open(kind, [], empty)
        last = self._blocks[-1]
        if isinstance(last, list):
            last.append(text)
        self._delta({"type": f"{kind}_delta", kind: text})

    def _open(self, kind: str, block: list[str] | _Call, empty: BlockOut) -> None:
        if self._blocks:
            self._frames.append(event("content_block_stop", index=len(self._blocks) - 1))
        self._blocks.append(block)
        self._kinds.append(kind)
        self._frames.append(event("content_block_start", index=len(self._blocks) - 1, content_block=empty))

    def _delta(self, delta: dict[str, str]) -> None:
        self._frames.append(event("content_block_delta", index=len(self._blocks) - 1, delta=delta))

    def _block(self, number: int) -> BlockOut:
        block = self._blocks[number]
        if isinstance(block, _Call):
            return ToolUseOut(id=block.id, name=block.name, input=_read(block.arguments))
        text = "".join(block)
        return ThinkingOut(thinking=text) if self._kinds[number] == "thinking" else TextOut(text=text)

    def _message(self, content: list[BlockOut]) -> MessageOut:
        reason, sequence = self._end()
        return MessageOut(
            id=self._id,
            model=self._model,
            content=content,
            stop_reason=reason,
            stop_sequence=sequence,
            usage=self._usage(),
        )

    def _end(self) -> tuple[str | None, str | None]:
        """stop_reason and stop_sequence."""
        finished = self._tally.finished
        if finished is None:
            return None, None
        if isinstance(finished.stop_reason, str):
            return "stop_sequence", finished.stop_reason
        if finished.reason == "length":
            return "max_tokens", None
        return ("tool_use" if "tool_use" in self._kinds else "end_turn"), None

    def _usage(self) -> MessageUsage:
        """Prompt tokens that the cache had are counted apart from the others."""
        finished = self._tally.finished
        cached = finished.usage.cached_tokens if finished else 0
        return MessageUsage(
            input_tokens=self._input_tokens - cached,
            output_tokens=self._tally.tokens,
            cache_read_input_tokens=cached,
        )


def _read(arguments: str) -> Any:
    """A call's input; one that was cut off stays as the text it is."""
    try:
        return json.loads(arguments) if arguments.strip() else {}
    except ValueError:
        return {"arguments": arguments}


def _failure(error: BaseException) -> bytes:
    return frame(error_body(error), "error")


MESSAGES_REQUEST = msgspec.json.Decoder(MessagesRequest)
