"""One response: the model's answer to a conversation, told as Realtime events in the order that clients rely on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from sensorium.config import ServerConfig
from sensorium.errors import ContextLengthError, SensoriumError
from sensorium.server.answer_form import AnswerForm
from sensorium.server.chat_answer import Answer, CallPiece
from sensorium.server.errors import describe
from sensorium.server.generation import Generation, Job, Origin, Progress, Tally, Unwritten, prepare_chat
from sensorium.server.metrics import Metrics
from sensorium.server.realtime.conversation import Item, Status, made_id, to_messages
from sensorium.server.realtime.schema import FunctionChoice
from sensorium.server.realtime.session import Answers
from sensorium.server.reports import report_usage
from sensorium.server.tools import Named, ToolPlan, plan_tools
from sensorium.types import ChatOptions, Prompt, PromptScored

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

log = logging.getLogger(__name__)
Tell = Callable[..., Awaitable[None]]
"""Sends an event: its type, and its fields by name."""


@dataclass(slots=True)
class Response:
    """As clients see it. `add` puts a finished item into the conversation, or nowhere."""

    id: str
    conversation_id: str | None
    metadata: dict[str, str] | None
    max_output_tokens: Any
    status: str = "in_progress"
    status_details: dict[str, Any] | None = None
    output: list[Item] = field(default_factory=list[Item])
    usage: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": self.status_details,
            "output": [item.told() for item in self.output],
            "conversation_id": self.conversation_id,
            "output_modalities": ["text"],
            "max_output_tokens": self.max_output_tokens,
            "usage": self.usage,
            "metadata": self.metadata,
        }


class Writer:
    """Tells the growth of one answer: a message where there is text, and an item for each call."""

    def __init__(self, response: Response, tell: Tell, add: Callable[[Item], str | None]) -> None:
        """add: puts an item into the conversation and returns what is before it."""
        self._response = response
        self._tell = tell
        self._add = add
        self._text = ""
        self._open: Item | None = None

    async def write(self, text: str, calls: Sequence[CallPiece]) -> None:
        if text:
            if self._open is None or self._open.type != "message":
                await self._begin(Item(made_id("item"), "message", "assistant", "in_progress"))
                await self._say("response.content_part.added", part={"type": "text", "text": ""})
            self._text += text
            await self._say("response.output_text.delta", delta=text)
        for call in calls:
            if call.name is not None:
                known = {"call_id": call.id or made_id("call"), "name": call.name, "arguments": ""}
                await self._begin(Item(made_id("item"), "function_call", status="in_progress", call=known))
            if call.arguments and self._open is not None:
                self._open.call["arguments"] += call.arguments
                await self._tell(
                    "response.function_call_arguments.delta",
                    **self._place(),
                    call_id=self._open.call["call_id"],
                    delta=call.arguments,
                )

    async def end(self, status: Status = "completed") -> None:
        """Close what is open; an answer without anything is an empty message."""
        if not self._response.output and status == "completed":
            await self._begin(Item(made_id("item"), "message", "assistant", "in_progress"))
            await self._say("response.content_part.added", part={"type": "text", "text": ""})
        await self._close(status)

    async def _begin(self, item: Item) -> None:
        await self._close("completed")
        self._open = item
        self._response.output.append(item)
        before = self._add(item)
        place = len(self._response.output) - 1
        ident = self._response.id
        await self._tell("response.output_item.added", response_id=ident, output_index=place, item=item.told())
        if self._response.conversation_id is not None:
            await self._tell("conversation.item.added", previous_item_id=before, item=item.told())

    async def _close(self, status: Status) -> None:
        item, self._open = self._open, None
        if item is None:
            return
        self._open = item
        item.status = status
        if item.type == "message":
            item.content, item.parts = [{"type": "output_text", "text": self._text}], [self._text]
            await self._say("response.output_text.done", text=self._text)
            await self._say("response.content_part.done", part={"type": "text", "text": self._text})
            self._text = ""
        else:
            await self._tell("response.function_call_arguments.done", **self._place(), **item.call)
        place = self._place()
        self._open = None
        await self._tell(
            "response.output_item.done",
            response_id=place["response_id"],
            output_index=place["output_index"],
            item=item.told(),
        )
        if self._response.conversation_id is not None:
            await self._tell("conversation.item.done", previous_item_id=None, item=item.told())

    async def _say(self, kind: str, **fields: Any) -> None:
        await self._tell(kind, **self._place(), content_index=0, **fields)

    def _place(self) -> dict[str, Any]:
        item = self._open
        ident = item.id if item is not None else ""
        return {
            "response_id": self._response.id,
            "item_id": ident,
            "output_index": len(self._response.output) - 1,
        }


class _Codec(Unwritten):
    """Collects the events of the one job; see generation.Codec."""

    def __init__(self, form: AnswerForm) -> None:
        self.answer = Answer(0, form, keep_reasoning=False)

    def take(self, number: int, event: Progress) -> None:
        if not isinstance(event, PromptScored):
            self.answer.add(event)


class Answering:
    """Makes responses for one connection."""

    def __init__(
        self, client: Callable[[], EngineClient], config: ServerConfig, metrics: Metrics, origin: Origin
    ) -> None:
        self._client = client
        self._config = config
        self._metrics = metrics
        self._origin = origin

    def tools(self, answers: Answers) -> ToolPlan:
        """Raises RequestError where tools and their choice do not fit each other, or the server's settings."""
        functions = [
            {name: value for name, value in msgspec.to_builtins(tool).items() if value is not None and name != "type"}
            for tool in answers.tools
        ]
        choice = answers.tool_choice
        if isinstance(choice, FunctionChoice):
            choice = Named(choice.name, "tool_choice.name")
        if choice == "auto" and functions and not self._config.enable_auto_tool_choice:
            choice = "none"  # a session may carry tools for the responses that name them
        return plan_tools(functions, choice, self._config, parallel=answers.parallel_tool_calls)

    async def answer(
        self, response: Response, answers: Answers, items: list[Item], writer: Writer, *, cut: bool
    ) -> None:
        """Generate it, and set what became of it. cut: leave out the oldest items where there are too many."""
        response.status, tallies, prompt = "completed", [], None
        try:
            generation, codec, prompt = await self._begin(answers, items, cut=cut)
            tallies = generation.tallies
            async with contextlib.aclosing(generation.events(codec)) as events:
                async for _ in events:
                    news = codec.answer.take_news()
                    await writer.write(news.content, news.calls)
            if codec.answer.finish_reason == "length":
                response.status = "incomplete"
                response.status_details = {"type": "incomplete", "reason": "max_output_tokens"}
        except asyncio.CancelledError:
            response.status = "cancelled"
            raise
        except Exception as error:
            if not isinstance(error, SensoriumError):
                log.exception("response %s failed", response.id)
            _, body, _ = describe(error)
            response.status = "failed"
            reason = {"type": body.error.type, "code": body.error.code, "message": body.error.message}
            response.status_details = {"type": "failed", "error": reason}
        finally:
            if prompt is not None:
                response.usage = _usage(tallies, prompt)

    async def _begin(self, answers: Answers, items: list[Item], *, cut: bool) -> tuple[Generation, _Codec, Prompt]:
        client = self._client()
        tools = self.tools(answers)
        options = ChatOptions(
            template_kwargs=self._config.default_chat_template_kwargs,
            template=self._config.chat_template,
            content_format=self._config.chat_template_content_format,
            interleave=self._config.interleave_mm_strings,
            tools=tools.in_prompt,
            namespace=self._origin.namespace,
        )
        prompt = await self._prompt(answers, items, options)
        while cut and len(items) > 1 and (prompt is None or len(prompt.ids) >= client.max_model_len):
            items = _without_oldest(items)
            prompt = await self._prompt(answers, items, options)
        if prompt is None:
            raise ContextLengthError("the conversation is longer than this model's context; delete items")
        form = AnswerForm.of(self._config, prompt, tools)
        defaults = client.default_sampling
        most = defaults.max_tokens
        if answers.max_output_tokens != "inf":
            most = min(answers.max_output_tokens, most or answers.max_output_tokens)
        sampling = replace(defaults, **{**answers.sampling, **form.demands(None, client)}, max_tokens=most)
        origin = replace(self._origin, id=made_id("resp"))
        return Generation(client, self._metrics, origin, [Job(prompt, sampling)]), _Codec(form), prompt

    async def _prompt(self, answers: Answers, items: list[Item], options: ChatOptions) -> Prompt | None:
        """None for a conversation so long that no prompt is made of it."""
        try:
            return await prepare_chat(self._client(), to_messages(answers.instructions, items), options)
        except ContextLengthError:
            return None


def _without_oldest(items: list[Item]) -> list[Item]:
    """Without the first turn: from there to the next thing that a user says."""
    for place in range(1, len(items)):
        if items[place].role == "user":
            return items[place:]
    return items[-1:]


def _usage(tallies: Sequence[Tally], prompt: Prompt) -> dict[str, Any]:
    report = report_usage(tallies, [prompt])
    media = prompt.media_tokens()
    pictures = media.get("image", 0) + media.get("video", 0)
    sounds = media.get("audio", 0)
    cached = report.prompt_tokens_details.cached_tokens if report.prompt_tokens_details else 0
    return {
        "total_tokens": report.total_tokens,
        "input_tokens": report.prompt_tokens,
        "output_tokens": report.completion_tokens,
        "input_token_details": {
            "text_tokens": report.prompt_tokens - pictures - sounds,
            "audio_tokens": sounds,
            "image_tokens": pictures,
            "cached_tokens": cached,
        },
        "output_token_details": {"text_tokens": report.completion_tokens, "audio_tokens": 0},
    }
