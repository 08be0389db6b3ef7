"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import replace

from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.parsers.reasoning import reasoning_marks
from sensorium.parsers.tools import tool_parser
from sensorium.server.answer_form import AnswerForm
from sensorium.server.beams import search_beams
from sensorium.server.chat_codec import ChatCodec, Heading
from sensorium.server.chat_plan import (
    check,
    plan_sampling,
    room_for_prompt,
    speaks,
    to_messages,
    to_options,
    to_tools,
)
from sensorium.server.chat_schema import CHAT_REQUEST, UNSUPPORTED, AudioChoice, ChatRequest
from sensorium.server.door import read_request
from sensorium.server.generation import Generation, Job, Origin, prepare_chat, send_json, unless_gone
from sensorium.server.metrics import Metrics
from sensorium.server.prompts import truncate
from sensorium.server.sampling import check_counts
from sensorium.server.schema import StreamOptions
from sensorium.server.served import Served
from sensorium.server.speech.answers import SaidBefore, SpokenAnswer
from sensorium.server.speech.schema import chosen
from sensorium.server.speech.spoken import spoken_messages, spoken_options
from sensorium.server.speech.voices import Voices, owner_of
from sensorium.types import Message, SpeechOptions


class ChatCompletions:
    """The endpoint, as raw ASGI: a stream is written event by event, and a client that leaves ends its work."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics, voices: Voices) -> None:
        """Raises RequestError for parsers that do not exist."""
        self._served = served
        self._voices = voices
        self._said = SaidBefore()
        self._config = config
        self._metrics = metrics
        if config.reasoning_parser is not None:
            reasoning_marks(config.reasoning_parser)
        if config.tool_call_parser is not None:
            tool_parser(config.tool_call_parser, ())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, _ = await read_request(self._served, self._config, CHAT_REQUEST, UNSUPPORTED, scope, receive)
        check_counts(request.n, request.best_of, request.stop, self._served.environment)
        check(request, self._served.client(), self._config)
        await unless_gone(receive, self.answer(request, scope, send))

    async def answer(self, request: ChatRequest, scope: Scope, send: Send) -> None:
        """Answer a request that was checked."""
        client, config = self._served.client(), self._config
        tools = to_tools(request, config)
        origin = Origin.of(
            scope,
            "chatcmpl-",
            request_id=request.request_id,
            salt=request.cache_salt,
            priority=request.priority,
        )
        origin.note(user=request.user, session_id=request.session_id)
        owner = owner_of(scope["state"])
        messages = to_messages(request, config, functools.partial(self._said.recall, owner=owner))
        options = replace(to_options(request, config, tools.in_prompt), namespace=origin.namespace)
        request.messages.clear()  # inline media would otherwise stay in memory as text until the answer is done
        last = messages[-1]
        voice = spoken = None
        if speaks(request):
            choice = request.audio or AudioChoice()
            voice = await self._voices.pick(chosen(choice.voice), owner, client, "audio.voice")
            messages, options = spoken_messages(client, messages, voice), spoken_options(client, options)
            form = choice.format or "wav"
            keep = functools.partial(self._said.keep, owner)
            spoken = SpokenAnswer("pcm" if form == "pcm16" else form, keep)
        prompt = await prepare_chat(client, messages, options)
        del messages
        if (room := room_for_prompt(request, client)) is not None:
            prompt = truncate(prompt, room, request.truncation_side or "left")
        form = AnswerForm.of(config, prompt, tools, last if options.continue_final_message else None)
        speech = None if voice is None else SpeechOptions(voice.name)
        jobs = [Job(prompt, sampling, speech=speech) for sampling in plan_sampling(request, client, form)]
        hear = None if spoken is None else spoken.hear
        generation = Generation(client, self._metrics, origin, jobs, interval=request.stream_interval, hear=hear)
        heading = self._heading(request, origin.id, last, new_turn=options.add_generation_prompt)
        codec = ChatCodec(heading, form, prompt, generation.tallies, client.tokenizer.token_bytes, spoken)
        if request.use_beam_search:
            longest = request.max_completion_tokens or request.max_tokens
            await search_beams(client, request, origin, prompt, generation.tallies, codec, longest=longest)
            await send_json(send, codec.reply())
        elif request.stream:
            await generation.stream(codec, send, config.sse_keep_alive_interval)
        else:
            await generation.run(codec)
            if spoken is not None:
                await asyncio.to_thread(spoken.encode)
            await send_json(send, codec.reply())

    def _heading(self, request: ChatRequest, ident: str, last: Message, *, new_turn: bool) -> Heading:
        config = self._config
        role = config.response_role if new_turn else last.role
        begun = "".join(part for part in last.parts if isinstance(part, str))
        usage = request.stream_options or StreamOptions()
        if config.enable_force_include_usage:
            usage = StreamOptions(include_usage=True, continuous_usage_stats=True)
        as_ids = request.return_tokens_as_token_ids
        return Heading(
            id=ident,
            model=self._served.name,
            system_fingerprint=self._served.fingerprint,
            role=role,
            prefix=begun if request.echo and last.role == role else "",
            service_tier=request.service_tier,
            metadata=request.metadata,
            usage=usage,
            prompt_details=config.enable_prompt_tokens_details,
            token_ids=bool(request.return_token_ids),
            tokens_as_ids=config.return_tokens_as_token_ids if as_ids is None else as_ids,
            prompt_text=bool(request.return_prompt_text),
            timings=config.enable_per_request_metrics,
            reasoning=request.include_reasoning is not False,
        )
