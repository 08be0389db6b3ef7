"""EngineClient: the only door to an engine. Owns its thread, the media threads, and the way back to callers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import queue
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sensorium.config import EngineConfig
from sensorium.engine.engine import Abort, EngineStats
from sensorium.engine.loading import Loaded, Progress, load
from sensorium.engine.memory import give_back
from sensorium.engine.prepare import Preparer
from sensorium.errors import ContextLengthError, EngineDeadError, OverloadedError, RequestError
from sensorium.models.base import Tokenizer
from sensorium.types import (
    ChatOptions,
    Event,
    Failed,
    Finished,
    Media,
    MediaRef,
    Message,
    Prompt,
    Request,
    SamplingParams,
)

log = logging.getLogger(__name__)
T = TypeVar("T")
_IDLE_S = 3.0
"""After so long without work the engine's thread gives unused memory back, once."""


class Stream:
    """The events of one request: iterate it (or `async for`) to exactly one Finished or Failed.

    Made inside a running event loop it belongs to that loop; elsewhere it blocks the calling thread.
    """

    def __init__(self, request_id: str, abort: Callable[[str], None], loop: asyncio.AbstractEventLoop | None) -> None:
        self.request_id = request_id
        self._abort = abort
        self._loop = loop
        self._events: asyncio.Queue[Event] | queue.SimpleQueue[Event] = asyncio.Queue() if loop else queue.SimpleQueue()
        self._done = False

    def abort(self) -> None:
        """End the request; its Finished("abort") still arrives. Harmless after the end."""
        if not self._done:
            self._abort(self.request_id)

    def __iter__(self) -> Iterator[Event]:
        if not isinstance(self._events, queue.SimpleQueue):
            raise RuntimeError("this stream was made in an event loop; use `async for`")
        while not self._done:
            event = self._events.get()
            self._done = isinstance(event, Finished | Failed)
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        if not isinstance(self._events, asyncio.Queue):
            raise RuntimeError("this stream was made outside an event loop; use a plain `for`")
        while not self._done:
            event = await self._events.get()
            self._done = isinstance(event, Finished | Failed)
            yield event

    def ready(self) -> list[Event]:
        """Events that have arrived already, without waiting: lets a slow reader merge deltas."""
        events: list[Event] = []
        while not self._done and not self._events.empty():
            event = self._events.get_nowait()
            self._done = isinstance(event, Finished | Failed)
            events.append(event)
        return events

    def _put(self, event: Event) -> None:
        self._events.put_nowait(event)


class EngineClient:
    """Loads a model and serves requests from any thread or event loop. Use as a context manager, or call close()."""

    def __init__(self, config: EngineConfig | None = None, progress: Progress | None = None) -> None:
        self.config = config or EngineConfig()
        self.loaded: Loaded = load(self.config, progress)
        self.engine = self.loaded.engine
        self.model_name = self.loaded.name
        self.max_model_len = self.engine.max_model_len
        self.modalities: tuple[str, ...] = self.loaded.model.modalities
        self.tokenizer: Tokenizer = self.loaded.processor.tokenizer
        self.default_sampling: SamplingParams = self.loaded.default_sampling
        self._streams: dict[str, Stream] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._dead: str | None = None
        self._ids = itertools.count()
        self._num_preparing = 0
        threads = self.config.media_threads or max((os.cpu_count() or 2) // 2, 1)
        self._preparer = Preparer(self.loaded.processor, self.modalities, self.config.limits)
        self._media_pool = ThreadPoolExecutor(threads, thread_name_prefix="sensorium-media")
        self._thread = threading.Thread(target=self._loop, name="sensorium-engine", daemon=True)
        self._thread.start()

    # ---- preparing -------------------------------------------------------------------------------------------------

    def prepare_chat(self, messages: Sequence[Message], options: ChatOptions | None = None) -> Prompt:
        """Fetch, decode and preprocess in a media thread; wait for it."""
        return self._prepare(self._preparer.chat, messages, options or ChatOptions()).result()

    async def aprepare_chat(self, messages: Sequence[Message], options: ChatOptions | None = None) -> Prompt:
        return await asyncio.wrap_future(self._prepare(self._preparer.chat, messages, options or ChatOptions()))

    def prepare_raw(
        self, text: str | Sequence[int], media: Sequence[MediaRef | Media] = (), options: ChatOptions | None = None
    ) -> Prompt:
        """A prompt in the model's own notation, control tokens included (offline use only)."""
        return self._prepare(self._preparer.raw, text, media, options or ChatOptions()).result()

    async def aprepare_raw(
        self, text: str | Sequence[int], media: Sequence[MediaRef | Media] = (), options: ChatOptions | None = None
    ) -> Prompt:
        return await asyncio.wrap_future(self._prepare(self._preparer.raw, text, media, options or ChatOptions()))

    def _prepare(self, call: Callable[..., T], *args: object) -> Future[T]:
        with self._lock:
            if self._num_preparing >= self.config.max_waiting:
                raise OverloadedError(f"{self._num_preparing} requests are being prepared already; try again later")
            self._num_preparing += 1
        try:
            future = self._media_pool.submit(call, *args)
        except RuntimeError:
            self._prepared()
            raise EngineDeadError("the engine is closed") from None
        future.add_done_callback(self._prepared)
        return future

    def _prepared(self, _: object = None) -> None:
        with self._lock:
            self._num_preparing -= 1

    # ---- requests --------------------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        request_id: str | None = None,
        namespace: str = "",
        priority: int = 0,
    ) -> Stream:
        """Queue a generation.

        Refuses before queueing, with ContextLengthError, RequestError, OverloadedError or EngineDeadError.
        """
        self._check(prompt, sampling)
        request_id = request_id or f"request-{next(self._ids)}"
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        stream = Stream(request_id, self._send_abort, loop)
        request = Request(
            request_id, prompt, sampling, namespace=namespace, priority=priority, arrival_s=self.engine.clock()
        )
        with self._lock:
            if self._dead or self._closing:
                raise EngineDeadError(self._dead or "the engine is closed")
            if request_id in self._streams:
                raise RequestError(f"request id {request_id!r} is in use", param="request_id")
            if len(self._streams) >= self.config.max_num_seqs + self.config.max_waiting:
                raise OverloadedError(f"the queue is full ({len(self._streams)} requests); try again later")
            self._streams[request_id] = stream
            self.engine.inbox.append(request)
        self._wake.set()
        return stream

    def _check(self, prompt: Prompt, sampling: SamplingParams) -> None:
        count, limit = len(prompt.ids), self.max_model_len
        if count == 0:
            raise RequestError("the prompt is empty", param="prompt")
        if count >= limit:
            raise ContextLengthError(
                f"the prompt has {count} tokens; with one to generate that exceeds this model's context of {limit}",
                param="messages",
            )
        vocab = self.loaded.model.vocab_size
        named = {"prompt": prompt.ids, "stop_token_ids": sampling.stop_token_ids, "logit_bias": sampling.logit_bias}
        for name, ids in named.items():
            if ids and not 0 <= min(ids) <= max(ids) < vocab:
                raise RequestError(f"{name} holds a token id outside 0..{vocab - 1}", param=name)
        size = sum({item.key: item.rows for item in prompt.media}.values()) * self.engine.scheduler.row_bytes
        room = self.engine.scheduler.encoder_cache.capacity_bytes
        if size > room:
            raise RequestError(
                f"the prompt's media need {size} bytes of embeddings; the encoder cache holds {room}",
                param="messages",
            )

    def _send_abort(self, request_id: str) -> None:
        self.engine.inbox.append(Abort(request_id))
        self._wake.set()

    # ---- the engine's thread ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        engine = self.engine
        try:
            while not self._closing:
                if not engine.has_work:
                    if not self._wake.wait(_IDLE_S):
                        give_back()
                        self._wake.wait()
                    self._wake.clear()
                    continue
                self._deliver(engine.step())
        except BaseException as error:  # a defect of ours: nobody may be left waiting
            log.critical("the engine stopped", exc_info=error)
            self._dead = f"the engine stopped ({type(error).__name__}); see the server log"
        with self._lock:
            self._dead = self._dead or "the engine is closed"
        self._deliver(engine.fail_all(self._dead))
        self._deliver([Failed(rid, "engine_dead", self._dead, 503) for rid in list(self._streams)])

    def _deliver(self, events: list[Event]) -> None:
        """Hand a step's events to their readers: one crossing per event loop."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Event]]] = defaultdict(list)
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            if isinstance(event, Finished | Failed):
                with self._lock:
                    del self._streams[event.request_id]
            if stream._loop is None:
                stream._put(event)
            else:
                by_loop[stream._loop].append((stream, event))
        for loop, pairs in by_loop.items():
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody reads any more
                loop.call_soon_threadsafe(_put_all, pairs)

    # ---- state -----------------------------------------------------------------------------------------------------

    @property
    def is_alive(self) -> bool:
        return self._dead is None and not self._closing and self._thread.is_alive()

    @property
    def num_requests(self) -> int:
        """Requests accepted and not ended."""
        return len(self._streams)

    def stats(self) -> EngineStats:
        return self.engine.stats

    def close(self) -> None:
        """Stop the threads. Requests in flight end with Failed("engine_dead"). Safe to call twice."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self._media_pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _put_all(pairs: list[tuple[Stream, Event]]) -> None:
    for stream, event in pairs:
        stream._put(event)
