"""The way of one HTTP request through the engine, whichever endpoint it came in by.

An endpoint turns its request into jobs, and a Codec turns events back into that endpoint's words. Everything between is
here: submitting, merging the events of several sequences, replying whole or as a stream, accounting, leaving early.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import re
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from sensorium.engine.marks import mark
from sensorium.errors import EngineError, RequestError, SensoriumError
from sensorium.server.errors import ClientGone
from sensorium.server.fleet import Fleet
from sensorium.server.metrics import Metrics
from sensorium.server.sse import EventStream, failure_frames
from sensorium.types import (
    ChatOptions,
    Event,
    Failed,
    Finished,
    Message,
    Pooled,
    PoolingParams,
    Prompt,
    PromptScored,
    SamplingParams,
    Sound,
    SpeechOptions,
    TextDelta,
    Timings,
)

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient, Stream

Progress = TextDelta | PromptScored | Finished
_PROGRESS = (TextDelta, PromptScored, Finished)
_numbers = itertools.count()
_NUMBER, _SESSION = re.compile(r"-?[0-9]{1,19}"), re.compile(r"[\x20-\x7e]{1,128}")


def _unseen() -> None:
    """Where nobody waits for it."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks. id: what the answer is called; facts: what the access log will say; namespace: see Request.

    entered: is called once the engine has the request; see Entrance.
    """

    id: str
    facts: dict[str, Any]
    namespace: str = ""
    priority: int = 0
    entered: Callable[[], None] = _unseen

    @classmethod
    def of(
        cls,
        scope: Scope,
        prefix: str,
        *,
        request_id: str | None = None,
        salt: str | None = None,
        priority: int | None = None,
    ) -> Origin:
        """The id's end is the X-Request-Id of the client, else `request_id`, else that of our own.

        Without a priority, that of the header X-Vllm-Priority. Raises RequestError where it is no number.
        """
        state: dict[str, Any] = scope["state"]
        end = state.get("given_id") or request_id or state.get("own_id") or uuid.uuid4().hex
        namespace = hashlib.sha256(f"{state.get('key', '')}/{salt or ''}".encode()).hexdigest()
        headers = Headers(scope=scope)
        if priority is None:
            priority = _whole_number("x-vllm-priority", headers.get("x-vllm-priority", "0"))
        origin = cls(prefix + end, state["facts"], namespace, priority, state.get("entered", _unseen))
        origin.facts["id"] = origin.id
        session = headers.get("x-session-id", "")
        origin.note(session_id=session if _SESSION.fullmatch(session) else None)
        return origin

    def note(self, **facts: str | None) -> None:
        """For the access log: those that are given."""
        self.facts.update({name: value for name, value in facts.items() if value})


def _whole_number(name: str, text: str) -> int:
    if not _NUMBER.fullmatch(text) or not -(1 << 63) <= int(text) < 1 << 63:
        raise RequestError(f"{name}: the header must be a whole number of 64 bits", param=name)
    return int(text)


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to generate."""

    prompt: Prompt
    sampling: SamplingParams
    pooling: PoolingParams | None = None
    """Given, a vector is wanted and sampling does not matter."""
    speech: SpeechOptions | None = None
    """Given, the answer is spoken too."""


@dataclass(slots=True)
class Tally:
    """How far a job has come."""

    tokens: int = 0
    sound_bytes: int = 0
    """Of 16-bit samples at SOUND_RATE."""
    submitted_s: float = 0.0
    last_s: float | None = None
    """When the latest tokens came."""
    finished: Finished | None = None


class Codec(Protocol):
    """One endpoint's words for what is generated. Jobs are known by their number."""

    def take(self, number: int, event: Progress) -> None:
        """Note an event. What follows is asked for after all events that arrived together."""
        ...

    def reply(self) -> bytes:
        """The whole answer as JSON, once every job has finished."""
        ...

    def opening(self) -> Sequence[bytes]:
        """Frames (see sse) of a stream before anything is generated."""
        ...

    def news(self, numbers: Collection[int]) -> Sequence[bytes]:
        """Frames for what these jobs took since they were last asked about."""
        ...

    def ending(self) -> Sequence[bytes]:
        """The last frames of a stream."""
        ...


class Unwritten:
    """What a codec has to say where nobody reads it as it comes."""

    def reply(self) -> bytes:
        return b""

    def opening(self) -> Sequence[bytes]:
        return ()

    def news(self, numbers: Collection[int]) -> Sequence[bytes]:
        return ()

    def ending(self) -> Sequence[bytes]:
        return ()


class Gathered:
    """Text kept back until there are `interval` tokens of it. What comes first is passed on at once."""

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._held: dict[int, TextDelta | None] = {}

    def take(self, number: int, event: Progress) -> Sequence[Progress]:
        """What may be passed on now, of sequence `number`."""
        if self._interval == 1:
            return (event,)
        held = self._held.get(number)
        if not isinstance(event, TextDelta):
            self._held[number] = None
            return (event,) if held is None else (held, event)
        if held is not None:
            event = replace(
                event,
                text=held.text + event.text,
                token_ids=held.token_ids + event.token_ids,
                logprobs=held.logprobs + event.logprobs,
            )
        ready = number not in self._held or len(event.token_ids) >= self._interval
        self._held[number] = None if ready else event
        return (event,) if ready else ()


class Generation:
    """Runs jobs and gives their events to a codec. Use once."""

    def __init__(
        self,
        client: EngineClient,
        metrics: Metrics,
        origin: Origin,
        jobs: Sequence[Job],
        *,
        interval: int | None = None,
        hear: Callable[[int, Sound], None] | None = None,
    ) -> None:
        """interval: least tokens of a piece of a stream but the first and the last; the engine's own is its floor.
        hear: is told the sound of jobs that are spoken, as codecs are told events."""
        self.tallies = [Tally() for _ in jobs]
        self._gathered = Gathered(max(interval or 1, client.config.stream_interval))
        self._client = client
        self._metrics = metrics
        self._origin = origin
        self._jobs = jobs
        self._hear = hear
        self._launched = self._failed = False
        self._vectors: dict[int, np.ndarray] = {}

    def events(self, codec: Codec) -> AsyncGenerator[Collection[int], None]:
        """Generate everything, for an endpoint that looks at the codec after each step. Must be closed."""
        return self._events(codec)

    async def run(self, codec: Codec) -> None:
        """Generate everything, for an endpoint that answers in its own way."""
        async with contextlib.aclosing(self._events(codec)) as events:
            async for _ in events:
                pass

    async def vectors(self) -> list[np.ndarray]:
        """What pooling jobs give, in their order."""
        async with contextlib.aclosing(self._events(None)) as events:
            async for _ in events:
                pass
        return [self._vectors[number] for number in range(len(self._jobs))]

    async def reply(self, codec: Codec, send: Send) -> None:
        """Answer with one JSON body when all is generated."""
        await self.run(codec)
        await send_json(send, codec.reply())

    async def stream(self, codec: Codec, send: Send, keep_alive_s: float) -> None:
        """Answer with server-sent events while it is generated. Refusals at submission still come as plain errors."""
        async with contextlib.aclosing(self._events(codec)) as events:
            await anext(events)
            async with EventStream(send, keep_alive_s, getattr(codec, "failure", failure_frames)) as output:
                await output.write(*codec.opening())
                async for numbers in events:
                    await output.write(*codec.news(numbers))
                await output.end(*codec.ending())

    async def _events(self, codec: Codec | None) -> AsyncGenerator[Collection[int], None]:
        """Nothing once the first jobs are accepted; then, again and again, the jobs with something new."""
        ident = f"{self._origin.id}-{next(_numbers)}"  # clients may repeat an id, the engine must not

        def submit(number: int) -> Stream:
            job = self._jobs[number]
            self.tallies[number].submitted_s = time.monotonic()
            return self._client.submit(
                job.prompt,
                job.sampling,
                request_id=f"{ident}-{number}",
                namespace=self._origin.namespace,
                priority=self._origin.priority,
                pooling=job.pooling,
                speech=job.speech,
            )

        fleet = Fleet(submit, len(self._jobs), self._client.config.max_num_seqs)
        try:
            for wanted in {job.sampling.structured_outputs for job in self._jobs}:
                if wanted is not None:  # refused here, before a stream begins
                    await self._client.acheck_structured(wanted)
            fleet.launch()
            self._launched = True
            self._origin.entered()
            self._count_start()
            yield ()
            async for events in fleet:
                now = time.monotonic()
                for number, event in events:
                    self._take(number, event, now, codec)
                yield dict.fromkeys(number for number, _ in events)
        finally:
            fleet.abort()
            self._account()

    def _count_start(self) -> None:
        room = self._client.max_model_len
        for jobs in self._by_prompt():
            job = self._jobs[jobs[0]]
            if job.pooling is None:
                most = room - len(job.prompt.ids)
                self._metrics.started(len(jobs), min(job.sampling.max_tokens or most, most))

    def _by_prompt(self) -> list[list[int]]:
        """Numbers of the jobs of each prompt."""
        groups: dict[int, list[int]] = {}
        for number, job in enumerate(self._jobs):
            groups.setdefault(id(job.prompt), []).append(number)
        return list(groups.values())

    def _take(self, number: int, event: Event, now: float, codec: Codec | None) -> None:
        if isinstance(event, Failed):
            self._failed = True
            raise failure_of(event)
        tally = self.tallies[number]
        if isinstance(event, TextDelta):
            tally.tokens += len(event.token_ids)
            if tally.last_s is not None:
                self._metrics.gap(now - tally.last_s, len(event.token_ids))
            tally.last_s = now
        elif isinstance(event, Finished):
            tally.finished = event
            self._metrics.finished(event)
            _mark(event.timings, tally.submitted_s, str(number))
        elif isinstance(event, Pooled):
            self._vectors[number] = event.data
        elif isinstance(event, Sound):
            self._take_sound(number, event, now)
        if codec is not None and isinstance(event, _PROGRESS):
            for ready in self._gathered.take(number, event):
                codec.take(number, ready)

    def _take_sound(self, number: int, event: Sound, now: float) -> None:
        tally = self.tallies[number]
        if event.pcm and not tally.sound_bytes:
            self._metrics.first_sound(now - tally.submitted_s)
        tally.sound_bytes += len(event.pcm)
        if event.ended == "failed":
            self._failed = True
            raise EngineError(f"the answer could not be spoken: {event.message}")
        if self._hear is not None:
            self._hear(number, event)

    def _account(self) -> None:
        """Write down how the request ended."""
        cut = "error" if self._failed else "abort"
        for tally in self.tallies:
            if tally.finished is None and self._launched:
                self._metrics.cut(cut)
        for number, tally in enumerate(self.tallies):
            if tally.finished is None and tally.submitted_s:
                mark("generate", tally.submitted_s, time.monotonic(), str(number))
        for numbers in self._by_prompt():
            tallies = [self.tallies[number] for number in numbers]
            if all(tally.finished is not None for tally in tallies) and self._jobs[numbers[0]].pooling is None:
                self._metrics.answered_prompt(max(tally.tokens for tally in tallies))
        self._origin.facts.update(
            prompt_tokens=sum(
                len(prompt.ids) for prompt in {id(job.prompt): job.prompt for job in self._jobs}.values()
            ),
            completion_tokens=sum(tally.tokens for tally in self.tallies),
            finish=",".join(tally.finished.reason if tally.finished else cut for tally in self.tallies),
        )


def _mark(timings: Timings, start_s: float, number: str) -> None:
    """For the trace: an answer, and its time waiting, computing the prompt, and generating."""
    mark("generate", start_s, start_s + timings.total_s, number)
    mark("queue", start_s, start_s + timings.queue_s, number)
    if timings.ttft_s is not None:
        mark("prefill", start_s + timings.queue_s, start_s + timings.ttft_s, number)
        mark("decode", start_s + timings.ttft_s, start_s + timings.total_s, number)


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt once, however many sequences continue it."""
    return list({id(prompt): prompt for prompt in prompts}.values())


async def prepare_chat(client: EngineClient, messages: Sequence[Message], options: ChatOptions) -> Prompt:
    """The prompt of a conversation; errors name processor options as HTTP requests do."""
    try:
        return await client.aprepare_chat(messages, options)
    except RequestError as error:
        if error.param and error.param.startswith("media_kwargs"):
            error.param = "mm_processor" + error.param.removeprefix("media")
        raise


def failure_of(event: Failed) -> SensoriumError:
    """The exception for a request that the engine gave up."""
    error = SensoriumError(event.message, param=event.param)
    error.code, error.status, error.retryable = event.code, event.status, event.status == 503
    return error


async def send_json(send: Send, content: bytes, status: int = 200) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


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
