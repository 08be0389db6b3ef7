"""From messages as a caller wrote them to a Prompt: look up, fetch, decode, preprocess. No torch.

Fetching and waiting happen in an event loop of its own, decoding in worker processes, the rest in a few threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sensorium.config import EngineConfig
from sensorium.engine.coroutines import done_here, run_here, run_loop, together
from sensorium.engine.marks import MediaCounters, MediaTotals
from sensorium.engine.media_limits import with_environment
from sensorium.engine.media_options import loading_options, settled, with_server_defaults
from sensorium.engine.media_pool import MediaPool, PoolStats
from sensorium.engine.processor_cache import CacheStats, ProcessorCache, array_bytes, cache_key, part_digest
from sensorium.engine.turns import Turns
from sensorium.envs import read_environment
from sensorium.errors import (
    CacheMissError,
    EngineDeadError,
    MediaError,
    RequestError,
    SensoriumError,
    TooLargeError,
    UnsupportedError,
)
from sensorium.inline import Pieces
from sensorium.media import embeds
from sensorium.media.fetch import Budget, Fetcher, FetchStats
from sensorium.media.local import read_local
from sensorium.media.mono import from_wav
from sensorium.media.options import check_loading
from sensorium.media.split import split_audio
from sensorium.models.base import Processor
from sensorium.types import ChatOptions, Clip, Embeds, Media, MediaRef, Message, Prepared, Prompt

log = logging.getLogger(__name__)
Part = MediaRef | Media | Embeds | Prepared
T = TypeVar("T")
Finish = Callable[[Sequence[Prepared]], Prompt]
"""From what the parts have become, in their order, to the prompt."""
MAX_UUID = 2048
_FETCHES = 4
_QUICKLY_HASHED = 1 << 19
_QUICKLY_DECODED = 1 << 20
_QUICKLY_ENCODED = 2000
"""Characters that are encoded sooner than another thread can be asked to."""
_TURNS = 4
"""Callers that prepare in their own threads at a time. Most of it is the interpreter's work: more are no faster, and an
engine in a thread waits for all of them behind every operation on its device."""
CUT_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class MediaStats:
    """Totals since the start, and what is there now."""

    cache: CacheStats
    pool: PoolStats
    fetch: FetchStats
    totals: MediaTotals
    waiting: Mapping[str, int]
    """Items that no worker has taken yet, by lane: media, video, and audio where it has its own."""


@dataclass(frozen=True, slots=True)
class _Request:
    """What the items of one request share: bytes to download, and fetches at once."""

    budget: Budget
    slots: asyncio.Semaphore
    here: bool = False
    """Whether all is done in the thread that asks, with nothing to wait for."""


class Preparer:
    """Turns messages or a raw prompt into what the engine takes. Safe to call from several threads. Close it."""

    def __init__(self, processor: Processor, modalities: Sequence[str], config: EngineConfig) -> None:
        self._processor = processor
        self._modalities = modalities
        self._environment = read_environment()
        config = self._config = replace(config, limits=with_environment(config.limits, self._environment))
        loading = config.media_io_kwargs
        if "video" in loading:
            loading = {**loading, "video": settled(loading["video"], config.limits)}
        check_loading(loading, config.limits)
        self._cache = ProcessorCache(int(config.mm_processor_cache_gb * (1 << 30)))
        workers = config.media_threads or self._environment.media_loading_thread_count or 0
        threads = workers or max((os.cpu_count() or 2) // 2, 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="sensorium-prepare")
        self._counters = MediaCounters()
        self._pool = MediaPool(
            processor,
            config.limits,
            workers=workers,
            video_workers=config.video_decode_workers,
            audio_workers=self._environment.max_audio_preprocess_workers or 0,
            max_waiting=config.max_waiting,
            counters=self._counters,
        )
        self._lock = threading.Lock()
        self.turns = Turns(_TURNS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fetcher: Fetcher | None = None
        self._closed = False
        self._warned = False

    def chat(self, messages: Sequence[Message], options: ChatOptions, here: bool = False) -> Future[Prompt]:
        """Cancelling the future ends its fetches and decodes.

        here: the caller waits, so it is done in this thread: text, with one item that is at hand at most.
        """

        def finish(ready: Sequence[Prepared]) -> Prompt:
            waiting = iter(ready)
            loaded = [
                replace(m, parts=tuple(part if isinstance(part, str) else next(waiting) for part in m.parts))
                for m in messages
            ]
            return self._processor.chat(loaded, options)

        options = self._with_defaults(options)
        parts = [part for message in messages for part in message.parts if not isinstance(part, str)]
        return self._start(parts, options, finish, here)

    def raw(
        self, text: str | Sequence[int], media: Sequence[Part], options: ChatOptions, here: bool = False
    ) -> Future[Prompt]:
        """As chat. Short text, and token ids, are prepared in the caller's thread also where it does not wait."""
        options = self._with_defaults(options)

        def finish(ready: Sequence[Prepared]) -> Prompt:
            return self._processor.raw(text, ready, options)

        if not (media or self._closed) and (not isinstance(text, str) or len(text) <= _QUICKLY_ENCODED):
            return done_here(finish, ())
        return self._start(media, options, finish, here)

    def media(self, refs: Sequence[MediaRef], options: ChatOptions) -> Future[list[Prepared]]:
        """Files alone, in their order, for prompts that are made elsewhere. None is kept: no frame comes twice."""
        return asyncio.run_coroutine_threadsafe(self._media(refs, options), self._running_loop())

    def speech(self, recording: MediaRef, instruction: str, hint: str = "") -> Future[list[Clip]]:
        """A recording in clips that a model hears at once, cut where it is quiet.

        instruction: see Processor.speech_instructions. hint: what the model should know beforehand, if anything.
        """
        return asyncio.run_coroutine_threadsafe(self._speech(recording, instruction, hint), self._running_loop())

    def decode(self, recording: MediaRef) -> Future[Media]:
        """The samples of a recording, fetched and decoded under the limits, and made into nothing else."""
        work = self._counted(self._recording, recording, self._with_defaults(ChatOptions()))
        return asyncio.run_coroutine_threadsafe(work, self._running_loop())

    def stats(self) -> MediaStats:
        fetched = self._fetcher.stats if self._fetcher else FetchStats()
        return MediaStats(
            replace(self._cache.stats),
            replace(self._pool.stats),
            replace(fetched),
            self._counters.totals(),
            self._pool.waiting,
        )

    def reset_cache(self) -> None:
        """Forget all preprocessed media."""
        if self._loop:
            self._loop.call_soon_threadsafe(self._cache.clear)

    def close(self) -> None:
        """Ends what is being prepared, and the processes. Safe to call twice."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop:
            asyncio.run_coroutine_threadsafe(self._leave(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
        self._pool.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    # ---- in the caller's thread ------------------------------------------------------------------------------------

    def _start(self, parts: Sequence[Part], options: ChatOptions, finish: Finish, here: bool) -> Future[Prompt]:
        here = here and len(parts) <= 1 and all(_is_at_hand(part) for part in parts)
        try:
            if not (parts or here):
                return self._threads.submit(finish, ())
            if here and not self._closed:
                with self.turns:
                    return run_here(self._prepare(parts, options, finish, self._context(here=True)))
            loop = self._running_loop()
            return asyncio.run_coroutine_threadsafe(self._prepare(parts, options, finish, self._context()), loop)
        except RuntimeError:
            raise EngineDeadError("the engine is closed") from None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise EngineDeadError("the engine is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=run_loop, args=(self._loop,), name="sensorium-media-loop", daemon=True).start()
            return self._loop

    def _with_defaults(self, options: ChatOptions) -> ChatOptions:
        return with_server_defaults(options, self._config.mm_processor_kwargs)

    # ---- in the loop -----------------------------------------------------------------------------------------------

    async def _prepare(self, parts: Sequence[Part], options: ChatOptions, finish: Finish, context: _Request) -> Prompt:
        self._check(parts)
        identities = _identities(parts, by_uuid=self._cache.capacity_bytes > 0)
        indices: dict[str, int] = {}
        chosen: dict[Any, tuple[Part, int]] = {}
        for identity, part in zip(identities, parts, strict=True):
            index = indices.get(part.modality, 0)
            indices[part.modality] = index + 1
            if identity not in chosen or _is_reference(chosen[identity][0]):
                chosen[identity] = part, index
        # Equal items of one request are prepared once.
        work = {
            identity: self._counted(self._item, part, index, options, context)
            for identity, (part, index) in chosen.items()
        }
        done = await together(list(work.values())) if len(work) > 1 else [await part for part in work.values()]
        found = dict(zip(work, done, strict=True))
        size = sum(array_bytes(prepared.content) for prepared in found.values())
        if size > self._config.limits.max_request_bytes:
            raise TooLargeError(
                f"the request's media take {size} bytes once decoded; at most {self._config.limits.max_request_bytes} "
                "are allowed (max_request_bytes)",
                param="messages",
            )
        ready = [replace(found[key], part=part.part) for key, part in zip(identities, parts, strict=True)]
        return await self._do(context, finish, ready)

    async def _do(self, context: _Request, work: Callable[..., T], *args: object) -> T:
        """In a thread that may take its time."""
        if context.here:
            return work(*args)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    async def _media(self, refs: Sequence[MediaRef], options: ChatOptions) -> list[Prepared]:
        self._check(refs)
        return await together([self._counted(self._file, ref, options) for ref in refs])

    async def _file(self, ref: MediaRef, options: ChatOptions) -> Prepared:
        return await self._pool.prepare(replace(ref, options=self._io_options(ref, options)), options.media_kwargs)

    async def _speech(self, recording: MediaRef, instruction: str, hint: str) -> list[Clip]:
        self._check([recording])
        options = self._with_defaults(ChatOptions())
        media = await self._counted(self._recording, recording, options)
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, self._clips, media, instruction, hint, options
        )

    async def _recording(self, recording: MediaRef, options: ChatOptions) -> Media:
        io_options = self._io_options(recording, options)
        return await self._pool.decode(await self._fetched(recording, 0, io_options, self._context()))

    async def _counted(self, work: Callable[..., Coroutine[Any, Any, T]], part: Part, *args: object) -> T:
        """The work on one item, counted by how it ends."""
        try:
            result = await work(part, *args)
        except SensoriumError as error:
            self._counters.failed(part.modality, error.code)
            raise
        self._counters.done(part.modality)
        return result

    def _clips(self, media: Media, instruction: str, hint: str, options: ChatOptions) -> list[Clip]:
        rate = media.rate or 1
        before, _, after = instruction.partition("{audio}")
        opening = [Message("system", (hint,))] if hint else []
        clips: list[Clip] = []
        start, longest_s = 0, getattr(self._processor, "speech_clip_s", 30.0)
        for samples in split_audio(media.data, rate, longest_s, CUT_WITHIN_S, rate // 10):
            digest = hashlib.blake2b(media.digest, digest_size=32, salt=start.to_bytes(8, "little")).digest()
            part = replace(media, data=samples, digest=digest)
            parts = (before, part, after)
            question = Message("user", tuple(item for item in parts if not isinstance(item, str) or item))
            prompt = self._processor.chat([*opening, question], options)
            clips.append(Clip(prompt, start / rate, (start + len(samples)) / rate))
            start += len(samples)
        return clips

    def _context(self, here: bool = False) -> _Request:
        return _Request(Budget(self._config.limits.max_request_download_bytes), asyncio.Semaphore(_FETCHES), here)

    def _check(self, parts: Sequence[Part]) -> None:
        """Refuse by kind and count before a byte is fetched."""
        most = self._config.limits.max_items
        if len(parts) > most:
            raise RequestError(f"{len(parts)} media items in one request; at most {most} are allowed", param="messages")
        raw = [part for part in parts if not _is_embeds(part)]
        for part in parts:
            if part.modality not in self._modalities:
                known = ", ".join(self._modalities) or "text only"
                raise UnsupportedError(f"this model takes no {part.modality} input ({known})", param=part.part or None)
            if not isinstance(part, Prepared) and part.uuid is not None:
                _check_uuid(part.uuid, part.part)
        for modality, given in self._config.limit_mm_per_prompt.items():
            limit: int = given.get("count", most) if isinstance(given, Mapping) else given  # pyright: ignore
            # A limit of 0 switches the encoder off, which embeddings do not need.
            counted = raw if limit == 0 and self._config.enable_mm_embeds is not False else parts
            if sum(part.modality == modality for part in counted) > limit:
                raise RequestError(
                    f"At most {limit} {modality}(s) may be provided in one prompt. "
                    f"Set --limit-mm-per-prompt to raise this limit (limit_mm_per_prompt).",
                    param=modality,
                )
        if len(raw) < len(parts):
            self._check_embeds(next(part for part in parts if _is_embeds(part)))

    def _check_embeds(self, part: Part) -> None:
        if self._config.enable_mm_embeds is False:
            raise UnsupportedError(
                f"You must set `--enable-mm-embeds` to input `{part.modality}_embeds`", param=part.part or None
            )
        if self._config.enable_mm_embeds is None and not self._warned:
            self._warned = True
            log.warning(
                "embeddings are taken as media; set enable_mm_embeds to say so (True) or to refuse them (False)"
            )

    async def _item(self, part: Part, index: int, options: ChatOptions, context: _Request) -> Prepared:
        if isinstance(part, Prepared):
            return part
        io_options = self._io_options(part, options)
        settings = {"io": io_options, "kwargs": options.media_kwargs}
        form = "embeds" if _is_embeds(part) else "media"
        uuid_key = None
        if part.uuid is not None and self._cache.capacity_bytes:
            uuid_key = _uuid_key(part, form, settings, options)
            if (hit := self._cache.get(uuid_key)) is not None:
                return hit
            if isinstance(part, MediaRef) and part.source is None and form == "media":
                # What a reference names may have come as embeddings.
                embeds_key = _uuid_key(part, "embeds", {"io": {}, "kwargs": options.media_kwargs}, options)
                if (hit := self._cache.get(embeds_key)) is not None:
                    return hit
        if isinstance(part, MediaRef):
            part = await self._fetched(part, index, io_options, context)
        digest = await self._digested(part, context)
        key = uuid_key or cache_key(options.namespace, f"content {part.modality} {form}", digest, settings)
        if uuid_key is None and (hit := self._cache.get(key)) is not None:
            return hit
        if isinstance(part, MediaRef):
            if context.here and (media := self._quickly_decoded(part, digest)) is not None:
                prepared = await self._preprocessed(media, options, context)
            elif context.here:
                with self.turns.left():
                    prepared = self._pool.prepare_here(part, options.media_kwargs)
            else:
                prepared = await self._pool.prepare(part, options.media_kwargs)
        else:
            if isinstance(part, Media):
                self._check_media(part, options)
                part = replace(part, options=io_options)
            prepared = await self._preprocessed(part, options, context)
        self._cache.put(key, prepared)
        return prepared

    async def _preprocessed(self, media: Media | Embeds, options: ChatOptions, context: _Request) -> Prepared:
        start = time.monotonic()
        prepared = await self._do(context, self._processor.prepare, media, options.media_kwargs)
        self._counters.took("preprocess", media.modality, start, time.monotonic())
        return prepared

    def _quickly_decoded(self, part: MediaRef, digest: bytes) -> Media | None:
        """A short sound that numpy alone can decode, where its features are left to the device: a worker takes three
        times as long, to send and to get it. digest: of its bytes."""
        data = part.source
        if part.modality != "audio" or not self._processor.scales_on_device or not isinstance(data, bytes):
            return None
        if len(data) > _QUICKLY_DECODED:
            return None
        start = time.monotonic()
        if (media := from_wav(data, part.part, self._config.limits, part.options, digest)) is not None:
            self._counters.took("decode", part.modality, start, time.monotonic())
        return media

    async def _digested(self, part: MediaRef | Media | Embeds, context: _Request) -> bytes:
        """Large files are hashed elsewhere, so that others need not wait for them."""
        source = part.source if isinstance(part, MediaRef) else None
        if not isinstance(source, bytes | Pieces) or len(source) <= _QUICKLY_HASHED:
            return part_digest(part)
        return await self._do(context, part_digest, part)

    async def _fetched(self, ref: MediaRef, index: int, io_options: Mapping[str, Any], context: _Request) -> MediaRef:
        if ref.source is None:
            miss = f"Cache miss for {ref.modality} at index {index} but data is not provided."
            if not self._cache.capacity_bytes:
                raise CacheMissError(
                    f"{miss} The processor cache is disabled (mm_processor_cache_gb=0).", param=ref.part
                )
            raise CacheMissError(f"{miss} Send the data of uuid {str(ref.uuid)[:200]!r} again.", param=ref.part or None)
        if ref.form == "embeds":
            source = embeds.payload(ref, self._config.limits)
        elif context.here:
            source = read_local(ref, self._config.limits)
            self._counters.fetched(ref.modality, len(source))
        else:
            if self._fetcher is None:
                self._fetcher = Fetcher(self._config.limits, self._environment, self._threads)
            async with context.slots:
                start = time.monotonic()
                source = await self._fetcher.fetch(ref, context.budget)
            self._counters.took("fetch", ref.modality, start, time.monotonic())
            self._counters.fetched(ref.modality, len(source))
        return replace(ref, source=source, options=io_options)

    def _io_options(self, part: MediaRef | Media | Embeds, options: ChatOptions) -> dict[str, Any]:
        """The server's defaults, the request's, and the part's own."""
        if isinstance(part, Embeds) or _is_embeds(part):
            return {}
        if isinstance(part, Media):
            return dict(part.options)
        default = self._config.media_io_kwargs.get(part.modality, {})
        asked = {**options.media_io_kwargs.get(part.modality, {}), **part.options}
        return loading_options(part.modality, default, asked, self._config.limits)

    def _check_media(self, media: Media, options: ChatOptions) -> None:
        """What decoders check of files, for media that come decoded."""
        most = self._config.limits.max_audio_s
        if media.modality == "audio" and len(media.data) > most * (media.rate or 1):
            raise TooLargeError(f"the audio is longer than {most:g} seconds (max_audio_s)", param=media.part or None)
        hears = options.media_io_kwargs.get("video", {}).get("use_audio")
        if media.modality == "video" and hears and media.audio is None:
            raise MediaError(
                "use_audio_in_video: these frames come without sound; give the recording as audio",
                param=media.part or None,
            )

    async def _leave(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._fetcher:
            await self._fetcher.close()


def _is_embeds(part: Part) -> bool:
    return isinstance(part, Embeds) or (isinstance(part, MediaRef) and part.form == "embeds")


def _is_at_hand(part: Part) -> bool:
    """Whether it need not be fetched."""
    return not isinstance(part, MediaRef) or (isinstance(part.source, bytes) and part.form == "media")


def _check_uuid(uuid: str, part: str) -> None:
    if not 1 <= len(uuid) <= MAX_UUID or not uuid.isprintable():
        raise MediaError(f"a media uuid must be 1 to {MAX_UUID} printable characters", param=part or None)


def _identities(parts: Sequence[Part], *, by_uuid: bool) -> list[Any]:
    """Equal for parts that are sure to become the same item; a reference by uuid joins the part that has its data."""
    found = [_identity(part, by_uuid) for part in parts]
    named: dict[Any, Any] = {}
    for part, identity in zip(parts, found, strict=True):
        if by_uuid and not isinstance(part, Prepared) and part.uuid is not None and not _is_reference(part):
            named.setdefault((part.modality, part.uuid), identity)
    return [
        named.get((part.modality, part.uuid), identity)
        if not isinstance(part, Prepared) and _is_reference(part)
        else identity
        for part, identity in zip(parts, found, strict=True)
    ]


def _identity(part: Part, by_uuid: bool) -> Any:
    if by_uuid and not isinstance(part, Prepared) and part.uuid is not None and not _is_reference(part):
        options: Mapping[str, Any] = {} if isinstance(part, Embeds) else part.options
        return part.modality, _is_embeds(part), part.uuid, repr(options)
    if not isinstance(part, MediaRef) or not isinstance(part.source, str | bytes | None):
        return id(part)
    return part.modality, part.form, part.source, part.uuid, repr(part.options)


def _is_reference(part: Part) -> bool:
    return isinstance(part, MediaRef) and part.source is None


def _uuid_key(part: MediaRef | Media | Embeds, form: str, settings: Mapping[str, Any], options: ChatOptions) -> bytes:
    return cache_key(options.namespace, f"uuid {part.modality} {form}", str(part.uuid).encode(), settings)
