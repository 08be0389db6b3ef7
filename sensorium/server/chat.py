"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import RequestError, SensoriumError
from sensorium.server.body import decode, read_body
from sensorium.server.errors import ClientGone
from sensorium.server.metrics import Metrics
from sensorium.server.openai import (
    Answer,
    Heading,
    check,
    report_usage,
    to_choice,
    to_chunk_choice,
    to_messages,
    to_options,
    to_sampling,
)
from sensorium.server.schema import CHAT_REQUEST, UNSUPPORTED, ChatRequest, ChunkChoice, Delta, UsageReport
from sensorium.server.served import Served
from sensorium.server.sse import EventStream
from sensorium.types import Event, Failed, Finished, Prompt, TextDelta

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient, Stream


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
        answering = _Answering(client, self._served, self._metrics, request, scope["state"])
        await unless_gone(receive, answering.run(send))


class _Answering:
    """One request on its way through the engine."""

    def __init__(
        self, client: EngineClient, served: Served, metrics: Metrics, request: ChatRequest, state: dict[str, Any]
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._request = request
        self._facts: dict[str, Any] = state["facts"]
        self._namespace = hashlib.sha256(f"{state.get('key', '')}/{request.cache_salt or ''}".encode()).hexdigest()
        self._heading = Heading(
            id=f"chatcmpl-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=served.name,
            system_fingerprint=served.fingerprint,
        )
        self._answers = [Answer(index) for index in range(request.n or 1)]
        self._failed = False
        self._prompt_tokens = 0
        self._media_tokens: dict[str, int] = {}

    async def run(self, send: Send) -> None:
        self._facts["id"] = self._heading.id
        if self._request.user:
            self._facts["user"] = self._request.user
        prompt = await self._prepare()
        self._prompt_tokens, self._media_tokens = len(prompt.ids), prompt.media_tokens()
        streams: list[Stream] = []
        try:
            for index in range(len(self._answers)):
                streams.append(self._submit(prompt, index))
            if self._request.stream:
                await self._stream(streams, send)
            else:
                await self._reply(streams, send)
        finally:
            for stream in streams:
                stream.abort()
            self._account()

    async def _prepare(self) -> Prompt:
        messages, options = to_messages(self._request), to_options(self._request)
        self._request.messages.clear()  # inline media would otherwise stay in memory as text until the answer is done
        try:
            return await self._client.aprepare_chat(messages, options)
        except RequestError as error:
            if error.param and error.param.startswith("media_kwargs"):  # their name in the engine
                error.param = "mm_processor" + error.param.removeprefix("media")
            raise

    def _submit(self, prompt: Prompt, index: int) -> Stream:
        return self._client.submit(
            prompt,
            to_sampling(self._request, self._client.default_sampling, index),
            request_id=f"{self._heading.id}-{index}",
            namespace=self._namespace,
            priority=self._request.priority or 0,
        )

    async def _reply(self, streams: Sequence[Stream], send: Send) -> None:
        async for events in _merge(streams):
            self._take(events)
        token_bytes = self._client.tokenizer.token_bytes
        choices = [to_choice(answer, answer.finished, token_bytes) for answer in self._answers if answer.finished]
        content = msgspec.json.encode(self._heading.completion(choices, self._usage(), self._request.metadata))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _stream(self, streams: Sequence[Stream], send: Send) -> None:
        options = self._request.stream_options
        with_usage = options is not None and options.include_usage
        always = options is not None and options.continuous_usage_stats
        token_bytes = self._client.tokenizer.token_bytes

        def encode(choice: ChunkChoice) -> bytes:
            usage = self._usage() if always else None if with_usage else msgspec.UNSET
            return msgspec.json.encode(self._heading.chunk(choice, usage=usage))

        async with EventStream(send) as output:
            opening = Delta(role="assistant", content="")
            await output.write(*(encode(ChunkChoice(index=answer.index, delta=opening)) for answer in self._answers))
            async for events in _merge(streams):
                changed = {index: self._answers[index] for index, _ in events}
                self._take(events)
                choices = (to_chunk_choice(answer, token_bytes) for answer in changed.values())
                if payloads := [encode(choice) for choice in choices if choice is not None]:
                    await output.write(*payloads)
            if with_usage:
                await output.end(msgspec.json.encode(self._heading.chunk(usage=self._usage())))
            else:
                await output.end()

    def _take(self, events: list[tuple[int, Event]]) -> None:
        for index, event in events:
            if isinstance(event, Failed):
                self._failed = True
                raise _failure(event)
            if isinstance(event, TextDelta | Finished):
                self._answers[index].add(event)
            if isinstance(event, Finished):
                self._metrics.finished(event)

    def _account(self) -> None:
        """Write down how the request ended."""
        cut = "error" if self._failed else "abort"
        for answer in self._answers:
            if answer.finished is None:
                self._metrics.cut(cut)
        self._facts.update(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=sum(answer.tokens for answer in self._answers),
            finish=",".join(answer.finished.reason if answer.finished else cut for answer in self._answers),
        )

    def _usage(self) -> UsageReport:
        return report_usage(self._answers, self._prompt_tokens, self._media_tokens)


def _failure(event: Failed) -> SensoriumError:
    error = SensoriumError(event.message, param=event.param)
    error.code, error.status = event.code, event.status
    return error


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, or cancel it and raise ClientGone when the client closes the connection first."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        else:
            raise ClientGone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _merge(streams: Sequence[Stream]) -> AsyncIterator[list[tuple[int, Event]]]:
    """Events of all streams with their number, those that are ready together as one list."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield [(0, event), *((0, more) for more in streams[0].ready())]
        return
    merged: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def pump(index: int) -> None:
        async for event in streams[index]:
            merged.put_nowait((index, event))

    pumps = [asyncio.create_task(pump(index)) for index in range(len(streams))]
    running = len(streams)
    try:
        while running:
            events = [await merged.get()]
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    events.append(merged.get_nowait())
            running -= sum(isinstance(event, Finished | Failed) for _, event in events)
            yield events
    finally:
        for task in pumps:
            task.cancel()
