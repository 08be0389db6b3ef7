"""EngineClient: the only door to an engine. Prepares prompts here, and hands requests to an engine over a link.

The engine is a thread of this process, or a process of its own that is restarted when it dies; callers see no other
difference. Times that cross (`arrival_s`) are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sensorium.config import EngineConfig
from sensorium.engine.admission import Admission
from sensorium.engine.checkpoint import Progress
from sensorium.engine.grammar import GrammarChecker
from sensorium.engine.histogram import Buckets
from sensorium.engine.link import Kind, Link, Supervision
from sensorium.engine.marks import mark
from sensorium.engine.prepare import MediaStats, Part, Preparer
from sensorium.engine.protocol import (
    Abort,
    EngineFacts,
    EngineStats,
    ForgetMedia,
    ForgetPrefixes,
    OpenSession,
    RefuseWaiting,
)
from sensorium.engine.request_log import OutputLog, describe
from sensorium.engine.session_client import Session, SessionPlaces, plain
from sensorium.engine.speech_client import SpeechPlaces, check_spoken
from sensorium.engine.speech_door import SpeechDoor
from sensorium.engine.stream import LAST, Stream, hand_out, running_loop
from sensorium.errors import (
    BusyError,
    EngineDeadError,
    OverloadedError,
    RequestError,
    ShuttingDownError,
    UnsupportedError,
)
from sensorium.models.base import LivePrompts as LivePrompts
from sensorium.models.base import Processor, Tokenizer
from sensorium.types import (
    ChatOptions,
    Clip,
    Event,
    Failed,
    Media,
    MediaRef,
    Message,
    PoolingParams,
    Prepared,
    Prompt,
    Request,
    SamplingParams,
    SpeechOptions,
    StructuredOutputs,
)

if TYPE_CHECKING:
    from sensorium.engine.loading import Loaded

log = logging.getLogger(__name__)
T = TypeVar("T")
State = Literal["ready", "stalled", "sleeping", "restarting", "failed", "draining", "closed"]
_SESSION_LEN = 8192
# By name, so that a program whose engine is a process of its own never imports torch.
_LINKS = {"thread": "thread_link:ThreadLink", "process": "process_link:ProcessLink"}


class EngineClient(SpeechDoor):
    """Loads a model and serves requests from any thread or event loop. Use as a context manager, or call close()."""

    def __init__(
        self,
        config: EngineConfig | None = None,
        progress: Progress | None = None,
        *,
        kind: Kind = "thread",
        supervision: Supervision | None = None,
    ) -> None:
        """Returns when the engine is ready. Raises CheckpointError with what to do."""
        self.config = config or EngineConfig()
        self.supervision = supervision or Supervision()
        self._streams: dict[str, Stream] = {}
        self._others: set[str] = set()
        self._unstarted: dict[str, int] = {}
        self._seeds = random.Random(self.config.seed)
        self._outputs = OutputLog(self.config.max_log_len) if self.config.enable_log_outputs else None
        self._lock = threading.Lock()
        self._draining = self._closing = False
        self._ids = itertools.count()
        self._num_preparing = 0
        self._link = _connect(kind, self.config, self._deliver, progress, self.supervision)
        self.facts: EngineFacts = self._link.facts
        self.processor: Processor = self._link.processor
        self.processor.scales_on_device = self.facts.device.startswith("cuda")
        self.model_name = self.facts.model_name
        self.max_model_len = self.facts.max_model_len
        self.modalities = self.facts.modalities
        self.tokenizer: Tokenizer = self.processor.tokenizer
        self.default_sampling: SamplingParams = self.facts.default_sampling
        self._admission = Admission(self.facts, self.tokenizer, self.config)
        self._places = SessionPlaces(
            self.config.max_sessions, self.facts.plan.kv_tokens, self.config.block_size, self.max_model_len
        )
        self._speech = SpeechPlaces(self.facts)
        self._grammars = GrammarChecker(self.tokenizer, self.config.structured_outputs_config)
        self._preparer = Preparer(self.processor, self.modalities, self.config)
        self._link.expect(self._preparer.turns)

    @property
    def loaded(self) -> Loaded:
        """The engine and the model themselves, for tests and benchmarks. An engine in a process has none to give."""
        return getattr(self._link, "loaded")  # noqa: B009 - only one kind of link has it

    # ---- preparing -------------------------------------------------------------------------------------------------

    def prepare_chat(self, messages: Sequence[Message], options: ChatOptions | None = None) -> Prompt:
        """Fetch, decode and preprocess; wait for it."""
        return self._prepare(self._preparer.chat, messages, options or ChatOptions(), True).result()

    async def aprepare_chat(self, messages: Sequence[Message], options: ChatOptions | None = None) -> Prompt:
        return await self._aprepare(self._preparer.chat, messages, options or ChatOptions())

    def prepare_raw(
        self, text: str | Sequence[int], media: Sequence[Part] = (), options: ChatOptions | None = None
    ) -> Prompt:
        """A prompt in the model's own notation, control tokens included (offline use only)."""
        return self._prepare(self._preparer.raw, text, media, options or ChatOptions(), True).result()

    async def aprepare_raw(
        self, text: str | Sequence[int], media: Sequence[Part] = (), options: ChatOptions | None = None
    ) -> Prompt:
        return await self._aprepare(self._preparer.raw, text, media, options or ChatOptions())

    async def aprepare_speech(self, recording: MediaRef, instruction: str, hint: str = "") -> list[Clip]:
        """A recording cut into clips with the question what is said; see Preparer.speech."""
        return await self._aprepare(self._preparer.speech, recording, instruction, hint)

    async def aprepare_media(self, media: Sequence[MediaRef], options: ChatOptions | None = None) -> list[Prepared]:
        """Media on their own, for prompts that a family makes unit by unit; see live()."""
        return await asyncio.wrap_future(self._prepare(self._preparer.media, media, options or ChatOptions()))

    def live(self, session_id: str) -> LivePrompts:
        """Makes the prompts of a live session. Raises UnsupportedError where the model holds none."""
        make = getattr(self.processor, "live", None)
        if make is None:
            raise UnsupportedError("this model holds no live sessions")
        return make(session_id)

    async def adecode(self, recording: MediaRef) -> Media:
        """The samples of a recording; see Preparer.decode."""
        return await self._aprepare(self._preparer.decode, recording)

    @property
    def holds_live(self) -> bool:
        """Whether live() is possible."""
        try:
            self.live("")
        except UnsupportedError:
            return False
        return True

    async def _aprepare(self, call: Callable[..., Future[T]], *args: object) -> T:
        self.refuse_if_full(0)  # what cannot be queued is not worth preparing: refusals stay cheap under overload
        start = time.monotonic()
        try:
            return await asyncio.wrap_future(self._prepare(call, *args))
        finally:
            mark("prepare", start, time.monotonic())

    def _prepare(self, call: Callable[..., Future[T]], *args: object) -> Future[T]:
        self._refuse_if_ending()
        with self._lock:
            if self._num_preparing >= self.config.max_num_seqs + self.config.max_waiting:
                raise OverloadedError(
                    f"{self._num_preparing} requests are being prepared already; try again later", reason="preparing"
                )
            self._num_preparing += 1
        try:
            future = call(*args)
        except BaseException:
            self._prepared()
            raise
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
        pooling: PoolingParams | None = None,
        limit_logprobs: bool = True,
        speech: SpeechOptions | None = None,
    ) -> Stream:
        """Queue a generation, or with `pooling` an embedding. limit_logprobs: see Admission. speech: speak the answer.

        Refuses before queueing, with ContextLengthError, RequestError, OverloadedError or EngineDeadError. Structured
        output that cannot be compiled ends in a Failed with status 400; acheck_structured() finds out before.
        """
        if pooling is not None:
            self._admission.check_pooling(prompt, pooling, priority)
        else:
            self._admission.check(prompt, sampling, priority, limit_logprobs=limit_logprobs)
        request_id = request_id or f"request-{next(self._ids)}"
        stream = Stream(request_id, self._send_abort, running_loop())
        request = Request(
            request_id,
            prompt,
            self._bounded(sampling),
            namespace=namespace,
            priority=priority,
            arrival_s=time.monotonic(),
            pooling=pooling,
            speech=speech,
        )
        if speech is not None:
            check_spoken(request)
            self._speech.check(speech)
        self._refuse_if_ending()
        if self.config.enable_log_requests:
            log.info("Received request %s: %s", request_id, describe(request))
        with self._lock:
            if request_id in self._streams:
                raise RequestError(f"request id {request_id!r} is in use", param="request_id")
            self.refuse_if_full(len(prompt.ids))
            if speech is not None:
                self._speech.take(request_id)
            self._streams[request_id] = stream
            self._unstarted[request_id] = len(prompt.ids)
        try:
            self._link.send(request)
        except BaseException:
            with self._lock:
                self._forget(request_id)
            raise
        return stream

    def open_session(
        self,
        prompt: Prompt,
        policy: str = "turn",
        options: Mapping[str, Any] | None = None,
        *,
        sampling: SamplingParams | None = None,
        max_len: int | None = None,
        max_units: int = 4,
        return_hidden: bool = False,
        session_id: str | None = None,
        namespace: str = "",
        speech: SpeechOptions | None = None,
    ) -> Session:
        """Open a session that begins with a prompt, which may be empty. Returns at once; see Session.opened.

        policy, options: what decides in it, "turn" or one of the model's, with its options as plain values. max_len:
        most tokens it holds at once, pinned while it is open; by default 8192 or the context. max_units: most units
        appended and not read to their end. return_hidden: hidden states with every UnitDone. speech: speak what the
        units say. Raises BusyError where this engine holds no more sessions, RequestError, or EngineDeadError.
        """
        max_len = min(_SESSION_LEN, self.max_model_len) if max_len is None else max_len
        sampling = sampling or self.default_sampling
        self._admission.check_session(prompt, sampling, max_len, max_units)
        if speech is not None:
            self._speech.check(speech)
        self._refuse_if_ending()
        session_id = session_id or f"session-{next(self._ids)}"
        now = time.monotonic()
        request = Request(session_id, prompt, self._bounded(sampling), namespace=namespace, arrival_s=now)
        message = OpenSession(
            request, policy, plain(options or {}), max_len, max_units, now + 1.0, return_hidden, speech
        )
        session = Session(
            session_id,
            self._link.send,
            self._send_abort,
            running_loop(),
            max_units,
            self._admission.check_unit,
            self._change_speech,
        )
        with self._lock:
            if session_id in self._streams:
                raise RequestError(f"session id {session_id!r} is in use", param="session_id")
            self._places.take(session_id, max_len)
            try:
                if speech is not None:
                    self._speech.take(session_id)
            except BusyError:
                self._places.give_back(session_id)
                raise
            self._streams[session_id] = session
        try:
            self._link.send(message)
        except BaseException:
            with self._lock:
                self._forget(session_id)
            raise
        return session

    def check_structured(self, wanted: StructuredOutputs) -> None:
        """RequestError if no grammar comes of it within 2 s and 256 MiB. Blocks for so long at most, usually 1 ms."""
        self._grammars.check(wanted)

    async def acheck_structured(self, wanted: StructuredOutputs) -> None:
        await self._grammars.acheck(wanted)

    def refuse_if_full(self, num_tokens: int = 0) -> None:
        """OverloadedError where there is no room for one more request, with a prompt of so many tokens."""
        config = self.config
        most = config.max_num_queued_reqs or config.max_num_seqs + config.max_waiting
        if self.num_requests >= most:
            raise OverloadedError(
                f"the queue is full ({self.num_requests} requests); try again later", reason="requests"
            )
        queued = sum(self._unstarted.values())
        if config.max_num_queued_tokens is not None and queued and queued + num_tokens > config.max_num_queued_tokens:
            raise OverloadedError(f"the queue is full ({queued} prompt tokens wait); try again later", reason="tokens")

    def _bounded(self, sampling: SamplingParams) -> SamplingParams:
        """With the operator's bound on answers, and a seed of the engine's where the request has none."""
        longest, asked = self.config.override_generation_config.get("max_new_tokens"), sampling.max_tokens
        if longest is not None and (asked is None or asked > int(longest)):
            sampling = replace(sampling, max_tokens=int(longest))
        if sampling.seed is None:
            sampling = replace(sampling, seed=self._seeds.getrandbits(63))
        return sampling

    def _refuse_if_ending(self) -> None:
        if self._closing:
            raise EngineDeadError("the engine is closed")
        if self._draining:
            raise ShuttingDownError("the server is shutting down")

    def _send_abort(self, request_id: str) -> None:
        self._link.send(Abort(request_id))

    def _forget(self, request_id: str) -> Stream | None:
        self._unstarted.pop(request_id, None)
        self._places.give_back(request_id)
        self._speech.give_back(request_id)
        self._others.discard(request_id)
        return self._streams.pop(request_id, None)

    def _deliver(self, events: list[Event]) -> None:
        if self._outputs is not None:
            self._outputs.take(events)
        pairs: list[tuple[Stream, Event]] = []
        with self._lock:
            for event in events:
                request_id = event.request_id
                self._unstarted.pop(request_id, None)
                ends = isinstance(event, LAST)
                stream = self._forget(request_id) if ends else self._streams.get(request_id)
                if stream is not None:
                    pairs.append((stream, event))
        hand_out(pairs)

    # ---- state -----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """stalled: there is work, and no step ended for `supervision.stall_s`."""
        if self._closing or self._link.state == "closed":
            return "closed"
        if self._link.state != "ready":
            return self._link.state if self._link.state in ("failed", "sleeping") else "restarting"
        if self._draining:
            return "draining"
        return "stalled" if self._link.stuck_s > self.supervision.stall_s else "ready"

    @property
    def tasks(self) -> tuple[str, ...]:
        """What this engine can be asked for: generate with transcribe and translate, or embed."""
        if self.facts.pooler is not None:
            return ("token_embed",) if self.facts.pooler.type == "ALL" else ("embed", "token_embed")
        spoken = {name.partition(":")[0]: None for name in self.speech_instructions}
        return ("generate", *spoken)

    @property
    def speech_instructions(self) -> Mapping[str, str]:
        """See Processor.speech_instructions; empty where speech cannot be written down."""
        return getattr(self.processor, "speech_instructions", {})

    @property
    def reason(self) -> str:
        """Why there is no engine, for people; empty when there is one."""
        return self._link.reason

    @property
    def is_alive(self) -> bool:
        return self._link.state == "ready" and not self._closing

    @property
    def num_requests(self) -> int:
        """Requests accepted and not ended."""
        return len(self._streams) - len(self._places) - len(self._others)

    @property
    def num_sessions(self) -> int:
        """Sessions opened and not ended."""
        return len(self._places)

    @property
    def engine_pid(self) -> int:
        """The process that the engine runs in: this one, or the engine's own, which changes when it starts again."""
        return self._link.pid

    def stats(self) -> EngineStats:
        return self._link.stats()

    def check_seconds(self) -> Buckets:
        """How long it takes to check answer formats not seen before; bounds COMPILE_S of histogram.py."""
        return self._grammars.seconds.freeze()

    def media_stats(self) -> MediaStats:
        """Of the processor cache and the decoding processes."""
        return self._preparer.stats()

    def reset_mm_cache(self) -> None:
        """Forget preprocessed media, and their embeddings."""
        self._preparer.reset_cache()
        self.reset_encoder_cache()

    def reset_encoder_cache(self) -> None:
        """Forget embeddings of media; those of requests that run stay as long as these."""
        self._link.send(ForgetMedia())

    def reset_prefix_cache(self) -> None:
        """Forget the KV blocks of earlier prompts; requests that run keep theirs."""
        self._link.send(ForgetPrefixes())

    # ---- the end ---------------------------------------------------------------------------------------------------

    def sleep(self, *, wait: bool = False) -> None:
        """Free the device until wake(); see Link.sleep."""
        self._link.sleep(wait=wait)

    def wake(self) -> None:
        self._link.wake()

    def drain(self) -> None:
        """Refuse new requests and those still queued, with 503; let go on what runs. Safe to call twice."""
        if self._draining:
            return
        self._draining = True
        self._link.send(RefuseWaiting("shutting_down", "the server is shutting down"))

    def cut(self) -> int:
        """End every request with Failed("shutting_down"); how many there were."""
        with self._lock:
            ids = list(self._streams)
        for request_id in ids:
            self._send_abort(request_id)
        self._deliver([Failed(request_id, "shutting_down", "the server is shutting down", 503) for request_id in ids])
        return len(ids)

    def kill(self) -> None:
        """End an engine process at once, without a word to anybody. For signal handlers."""
        self._link.kill()

    def close(self) -> None:
        """Stop the engine. Requests in flight end with Failed("engine_dead"). Safe to call twice."""
        self._closing = True
        self._link.close()
        self._deliver([Failed(rid, "engine_dead", "the engine is closed", 503) for rid in list(self._streams)])
        self._grammars.close()
        self._preparer.close()

    def __enter__(self) -> EngineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(kind: Kind, *args: Any) -> Link:
    module, name = _LINKS[kind].split(":")
    return getattr(importlib.import_module(f"sensorium.engine.{module}"), name)(*args)
