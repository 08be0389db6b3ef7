"""One response: the model's answer to a conversation, told as Realtime events in the order that clients rely on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from sensorium.config import ServerConfig
from sensorium.errors import ContextLengthError, SensoriumError
from sensorium.server.answer_form import AnswerForm
from sensorium.server.chat_answer import Answer, CallPiece
from sensorium.server.errors import describe
from sensorium.server.generation import Generation, Job, Origin, Progress, Tally, Unwritten, prepare_chat
from sensorium.server.metrics import Metrics
from sensorium.server.realtime.conversation import Item, made_id, to_messages
from sensorium.server.realtime.schema import FunctionChoice, Retention, Truncation
from sensorium.server.realtime.session import Answers
from sensorium.server.realtime.writer import Response, Writer
from sensorium.server.reports import report_usage
from sensorium.server.speech.spoken import Reading, spoken_messages, spoken_options, with_reply
from sensorium.server.speech.voices import Picked, Voices
from sensorium.server.tools import Named, ToolPlan, plan_tools
from sensorium.types import ChatOptions, Prompt, PromptScored, Sound, SpeechOptions

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

log = logging.getLogger(__name__)


class _Codec(Unwritten):
    """Collects the events of the one job; see generation.Codec."""

    def __init__(self, form: AnswerForm) -> None:
        self.answer = Answer(0, form, keep_reasoning=False)
        self._sounds: list[tuple[bytes, bool]] = []

    def take(self, number: int, event: Progress) -> None:
        if not isinstance(event, PromptScored):
            self.answer.add(event)

    def hear(self, number: int, event: Sound) -> None:
        self._sounds.append((event.pcm, event.ended is not None))

    def take_sound(self) -> list[tuple[bytes, bool]]:
        """Pieces of sound, and whether each is the last one."""
        sounds, self._sounds = self._sounds, []
        return sounds


@dataclass(frozen=True, slots=True)
class _Making:
    """An answer that is being made. is_read_later: it is spoken once its text is whole."""

    generation: Generation
    codec: _Codec
    prompt: Prompt
    voice: Picked | None
    is_read_later: bool


class Answering:
    """Makes responses for one connection."""

    def __init__(
        self,
        client: Callable[[], EngineClient],
        config: ServerConfig,
        metrics: Metrics,
        origin: Origin,
        voices: Voices,
        owner: str,
    ) -> None:
        """owner: whose voices answers may have."""
        self._client = client
        self._voices = voices
        self._owner = owner
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

    async def voice(self, answers: Answers, place: str = "session.audio.output.voice") -> Picked | None:
        """Whom an answer sounds like; None for one that is read. Raises RequestError naming `place`."""
        if not answers.speaks:
            return None
        return await self._voices.pick(answers.voice, self._owner, self._client(), place)

    async def answer(
        self, response: Response, items: list[Item], writer: Writer, truncation: Truncation, *, is_kept: bool
    ) -> None:
        """Generate it, and set what became of it. is_kept: what is left out of these items stays so."""
        response.status, making = "completed", None
        try:
            making = await self._begin(response.answers, items, truncation, is_kept=is_kept)
            await self._tell(making, writer)
            if making.codec.answer.finish_reason == "length":
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
            if making is not None:
                response.usage = _usage(making.generation.tallies, making.prompt)

    async def _tell(self, making: _Making, writer: Writer) -> None:
        """What is generated, as it comes. Where calls may be among it, its text is spoken once that is whole."""
        codec, reads = making.codec, making.is_read_later
        text, calls = "", list[CallPiece]()
        async with contextlib.aclosing(making.generation.events(codec)) as events:
            async for _ in events:
                news = codec.answer.take_news()
                text += news.content
                calls += news.calls if reads else ()
                await writer.write(news.content, () if reads else news.calls)
                for pcm, last in codec.take_sound():
                    await writer.sound(pcm, last=last)
        if reads and text.strip():
            await self._read(making, text.strip(), writer)
        await writer.write("", calls)

    async def _read(self, making: _Making, text: str, writer: Writer) -> None:
        """Speak an answer that is there already."""
        client, voice = self._client(), making.voice
        assert voice is not None
        prompt, num_ids = with_reply(client, making.prompt, text)
        reading = Reading(client, self._metrics, replace(self._origin, id=made_id("resp")), prompt, num_ids, voice)
        try:
            async with contextlib.aclosing(reading.sound()) as pieces:
                async for pcm in pieces:
                    await writer.sound(pcm, last=False)
        finally:
            making.generation.tallies[0].sound_bytes = reading.tally.sound_bytes
        await writer.sound(b"", last=True)

    async def _begin(self, answers: Answers, items: list[Item], truncation: Truncation, *, is_kept: bool) -> _Making:
        client = self._client()
        voice = await self.voice(answers, "response.audio.output.voice")
        tools = self.tools(answers)
        options = ChatOptions(
            template_kwargs={**self._config.default_chat_template_kwargs, **answers.template_kwargs},
            template=self._config.chat_template,
            content_format=self._config.chat_template_content_format,
            interleave=self._config.interleave_mm_strings,
            tools=tools.in_prompt,
            namespace=self._origin.namespace,
        )
        make = functools.partial(self._prompt, answers, options=options, voice=voice)
        prompt = await self._fit(items, truncation, make, is_kept=is_kept)
        if prompt is None:
            raise ContextLengthError("the conversation is longer than this model's context; delete items")
        form = AnswerForm.of(self._config, prompt, tools)
        defaults = client.default_sampling
        most = defaults.max_tokens
        if answers.max_output_tokens != "inf":
            most = min(answers.max_output_tokens, most or answers.max_output_tokens)
        sampling = replace(defaults, **{**answers.sampling, **form.demands(None, client)}, max_tokens=most)
        origin, codec = replace(self._origin, id=made_id("resp")), _Codec(form)
        speech = None if voice is None or tools.parser is not None else SpeechOptions(voice.name)
        job = Job(prompt, sampling, speech=speech)
        generation = Generation(client, self._metrics, origin, [job], hear=codec.hear)
        return _Making(generation, codec, prompt, voice, voice is not None and speech is None)

    async def _fit(
        self,
        items: list[Item],
        truncation: Truncation,
        make: Callable[[list[Item]], Awaitable[Prompt | None]],
        *,
        is_kept: bool,
    ) -> Prompt | None:
        """The prompt of the items, or of the newest where they are too many."""
        prompt = await make(items)
        if truncation == "disabled":
            return prompt
        most = aim = self._client().max_model_len - 1
        if isinstance(truncation, Retention):
            nothing = await make([Item("nothing", "message", "user", parts=[""])])
            fixed = 0 if nothing is None else len(nothing.ids)
            if truncation.token_limits is not None and truncation.token_limits.post_instructions is not None:
                most = min(most, fixed + truncation.token_limits.post_instructions)
            aim = fixed + int(truncation.retention_ratio * (most - fixed))
        if prompt is not None and len(prompt.ids) <= most:
            return prompt
        newest = items
        while len(newest) > 1 and (prompt is None or len(prompt.ids) > aim):
            newest = _without_oldest(newest)
            prompt = await make(newest)
        if is_kept and isinstance(truncation, Retention):
            for item in items[: len(items) - len(newest)]:
                item.is_left_out = True
        return prompt

    async def _prompt(
        self, answers: Answers, items: list[Item], options: ChatOptions, voice: Picked | None
    ) -> Prompt | None:
        """None for a conversation so long that no prompt is made of it."""
        client, messages = self._client(), to_messages(answers.instructions, items)
        if voice is not None:
            messages, options = spoken_messages(client, messages, voice), spoken_options(client, options)
        try:
            return await prepare_chat(client, messages, options)
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
    spoken = report.completion_tokens_details.audio_tokens
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
        "output_token_details": {"text_tokens": report.completion_tokens - spoken, "audio_tokens": spoken},
    }
