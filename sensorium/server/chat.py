"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

import msgspec
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import RequestError
from sensorium.server.body import decode, read_body
from sensorium.server.generation import Generation, Job, Origin, Progress, Tally, prepare_chat, unless_gone
from sensorium.server.metrics import Metrics
from sensorium.server.openai import (
    Answer,
    Heading,
    TokenBytes,
    check,
    report_usage,
    to_choice,
    to_chunk_choice,
    to_messages,
    to_options,
    to_sampling,
)
from sensorium.server.schema import (
    CHAT_REQUEST,
    UNSUPPORTED,
    ChatRequest,
    ChunkChoice,
    Delta,
    StreamOptions,
    UsageReport,
)
from sensorium.server.served import Served
from sensorium.server.sse import DONE, frame
from sensorium.types import Prompt, PromptScored


class ChatCompletions:
    """The endpoint, as raw ASGI: a stream is written event by event, and a client that leaves ends its work."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics) -> None:
        self._served = served
        self._config = config
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = self._served.client()
        body = await read_body(scope, receive, self._config.max_body_bytes)
        request = decode(body, CHAT_REQUEST, UNSUPPORTED)
        del body
        check(request)
        self._served.check_name(request.model)
        if (request.min_tokens or 0) >= client.max_model_len:
            raise RequestError("min_tokens: larger than the context", param="min_tokens")
        await unless_gone(receive, self._answer(request, scope, send))

    async def _answer(self, request: ChatRequest, scope: Scope, send: Send) -> None:
        client = self._served.client()
        origin = Origin.of(scope, "chatcmpl-", salt=request.cache_salt, priority=request.priority or 0)
        if request.user:
            origin.facts["user"] = request.user
        messages, options = to_messages(request), to_options(request)
        request.messages.clear()  # inline media would otherwise stay in memory as text until the answer is done
        prompt = await prepare_chat(client, messages, options)
        del messages
        jobs = [Job(prompt, to_sampling(request, client.default_sampling, index)) for index in range(request.n or 1)]
        generation = Generation(client, self._metrics, origin, jobs)
        heading = Heading(
            id=origin.id,
            created=int(time.time()),
            model=self._served.name,
            system_fingerprint=self._served.fingerprint,
        )
        codec = _Codec(request, heading, prompt, generation.tallies, client.tokenizer.token_bytes)
        if request.stream:
            await generation.stream(codec, send, self._config.sse_keep_alive_interval)
        else:
            await generation.reply(codec, send)


class _Codec:
    """Chat completions and their chunks."""

    def __init__(
        self, request: ChatRequest, heading: Heading, prompt: Prompt, tallies: Sequence[Tally], token_bytes: TokenBytes
    ) -> None:
        self._heading = heading
        self._metadata = request.metadata
        self._options = request.stream_options or StreamOptions()
        self._prompt_tokens, self._media_tokens = len(prompt.ids), prompt.media_tokens()
        self._tallies = tallies
        self._token_bytes = token_bytes
        self._answers = [Answer(number) for number in range(len(tallies))]

    def take(self, number: int, event: Progress) -> None:
        if not isinstance(event, PromptScored):
            self._answers[number].add(event)

    def reply(self) -> bytes:
        choices = [to_choice(answer, answer.finished, self._token_bytes) for answer in self._answers if answer.finished]
        return msgspec.json.encode(self._heading.completion(choices, self._usage(), self._metadata))

    def opening(self) -> list[bytes]:
        delta = Delta(role="assistant", content="")
        return [self._chunk(ChunkChoice(index=answer.index, delta=delta)) for answer in self._answers]

    def news(self, numbers: Collection[int]) -> list[bytes]:
        choices = [to_chunk_choice(self._answers[number], self._token_bytes) for number in numbers]
        return [self._chunk(choice) for choice in choices if choice is not None]

    def ending(self) -> list[bytes]:
        if not self._options.include_usage:
            return [DONE]
        return [frame(msgspec.json.encode(self._heading.chunk(usage=self._usage()))), DONE]

    def _chunk(self, choice: ChunkChoice) -> bytes:
        without = None if self._options.include_usage else msgspec.UNSET
        usage = self._usage() if self._options.continuous_usage_stats else without
        return frame(msgspec.json.encode(self._heading.chunk(choice, usage=usage)))

    def _usage(self) -> UsageReport:
        return report_usage(self._tallies, self._prompt_tokens, self._media_tokens)
