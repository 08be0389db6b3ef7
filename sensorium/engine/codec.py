"""The codec as a stage: pieces of many streams become sound together, in slices between the steps of the backbone.

One batch runs at a time: pieces of one kind that wait when it begins, up to a number beyond which more at once gain
nothing. On a GPU it has a stream of its own, so that tokens are decoded meanwhile. Only the engine's thread may use a
stage.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sensorium.engine.speech_chunks import Block
from sensorium.engine.stopwatch import Stopwatch, timed, wait_for
from sensorium.models.base import Codec, Event, Slices

log = logging.getLogger(__name__)
_SHARE_S = 0.004
"""Of an engine step. What takes longer goes on in the next one; a slice is never cut."""


@dataclass(slots=True, eq=False)
class SoundStream:
    """What one speaker says on its way to sound; at most one piece is there at a time."""

    voice: Any
    piece: Block | None = None
    state: Any = None
    """The codec's own stream, made for the first piece of an utterance."""
    resets: int = 0


@dataclass(frozen=True, slots=True)
class Made:
    """A piece that is sound now, 16-bit little-endian, or could not become it."""

    stream: SoundStream
    pcm: bytes
    error: Exception | None = None


@dataclass(slots=True)
class _Job:
    """A batch under way, or a voice that is being prepared; with each stream its resets when it began."""

    slices: Slices[Any]
    streams: list[tuple[SoundStream, int]]
    voice: Any = None
    wait: Event | None = None


class CodecStage:
    def __init__(self, codec: Codec, device: torch.device, voices: int = 4, voice_s: float = 10.0) -> None:
        """voices: how many keep the state that their streams begin with, beyond those that speak.

        voice_s: seconds of a recording that count.
        """
        self.codec, self.voice_s = codec, voice_s
        self._most_voices = voices
        # Before the backbone, as the speech LM is: somebody waits to hear what has been written already.
        self._side = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(device))
        self._waiting: deque[SoundStream] = deque()
        self._unprepared: deque[Any] = deque()
        self._prepared: dict[int, Any] = {}
        self._users: Counter[int] = Counter()
        self._job: _Job | None = None
        self._was_voice = False
        self.passes: Stopwatch | None = None
        """What tells how long slices take, where somebody wants to know."""

    def reserve(self, streams: int) -> None:
        """Take the memory for so many streams now."""
        with self._on_device():
            self.codec.reserve(streams, self._most_voices, self.voice_s)
        if self._side is not None:
            self._side.synchronize()

    def rehearse(self, streams: int) -> None:
        """Speak a piece with so many streams, for what that needs beside their memory."""
        with self._on_device():
            self.codec.rehearse(self.codec.silent_voice(self.voice_s), streams)

    def record_graphs(self, streams: int, voices: Iterable[Any]) -> None:
        """Let whole pieces of these voices be recorded before anybody waits for them."""
        for voice in voices:
            with self._on_device():
                self.codec.record(voice, streams)

    def hear(self, samples: np.ndarray, rate: int) -> Any:
        """A voice of a recording's beginning; from any thread."""
        return self.codec.voice(samples[: int(self.voice_s * rate)], rate)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """The codec's own stream of the device: all of its state lives there."""
        if self._side is None:
            yield
        else:
            with torch.cuda.stream(self._side):
                yield

    # ---- streams ---------------------------------------------------------------------------------------------------

    def warm(self, voice: Any) -> None:
        """Prepare a voice before anybody speaks with it."""
        if id(voice) not in self._prepared and voice not in self._unprepared:
            self._unprepared.append(voice)

    def open(self, voice: Any) -> SoundStream:
        self._users[id(voice)] += 1
        self.warm(voice)
        if id(voice) in self._prepared:
            self._prepared[id(voice)] = self._prepared.pop(id(voice))  # the latest goes last
        return SoundStream(voice)

    def push(self, stream: SoundStream, piece: Block) -> None:
        """The next piece of a stream whose last one has been made, or reset."""
        assert stream.piece is None
        stream.piece = piece
        self._waiting.append(stream)

    def reset(self, stream: SoundStream) -> None:
        """Drop what was said: a piece under way is not told, and the next one begins anew."""
        stream.resets += 1
        stream.piece = stream.state = None
        if stream in self._waiting:
            self._waiting.remove(stream)

    def close(self, stream: SoundStream) -> None:
        self.reset(stream)
        self._users[id(stream.voice)] -= 1
        self._let_go()

    # ---- a step ----------------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return self._job is not None or bool(self._waiting) or bool(self._unprepared)

    @property
    def is_ready(self) -> bool:
        """Whether a step would find something to do without waiting for the device."""
        wait = None if self._job is None else self._job.wait
        return self.has_work and (wait is None or wait.query())

    def step(self, waits: Callable[[], bool]) -> list[Made]:
        """Some slices. waits: whether nobody else has anything to do, so that the device may be waited for."""
        made: list[Made] = []
        until = time.perf_counter() + _SHARE_S
        with self._on_device():
            while self.has_work:
                job = self._job = self._job or self._begin()
                if job.wait is not None and not wait_for(job.wait.query, waits):
                    break
                made += self._slice(job)
                if time.perf_counter() >= until:
                    break
        return made

    def _slice(self, job: _Job) -> list[Made]:
        try:
            with timed(self.passes, "codec"):
                job.wait = next(job.slices)
            return []
        except StopIteration as end:
            self._job = None
            return self._made(job, end.value)
        except Exception as error:
            self._job = None
            log.exception("the codec failed; the %d calls that it was working for end", len(job.streams))
            return self._failed(job, error)

    def _begin(self) -> _Job:
        """Pieces and voices by turns, where both wait."""
        speakable = [stream for stream in self._waiting if id(stream.voice) in self._prepared]
        self._was_voice = bool(self._unprepared) and not (self._was_voice and speakable)
        if self._was_voice or not speakable:
            voice = self._unprepared.popleft() if self._unprepared else self._waiting[0].voice
            return _Job(self.codec.prepare(voice), [], voice)
        kind = self._kind(speakable[0])
        streams = [stream for stream in speakable if self._kind(stream) == kind][: self.codec.batch]
        for stream in streams:
            self._waiting.remove(stream)
        return _Job(self._speak(streams), [(stream, stream.resets) for stream in streams])

    def _kind(self, stream: SoundStream) -> Hashable:
        assert stream.piece is not None
        return self.codec.kind(len(stream.piece.codes), stream.piece.last)

    def _speak(self, streams: list[SoundStream]) -> Slices[Any]:
        works: list[tuple[Any, tuple[int, ...], bool]] = []
        for stream in streams:
            assert stream.piece is not None
            stream.state = stream.state or self.codec.open(stream.voice)
            works.append((stream.state, stream.piece.codes, stream.piece.last))
        return (yield from self.codec.pieces(works))

    def _made(self, job: _Job, sounds: Any) -> list[Made]:
        if job.voice is not None:
            self._prepared[id(job.voice)] = job.voice
            self._let_go()
            return []
        made: list[Made] = []
        for (stream, resets), sound in zip(job.streams, sounds, strict=True):
            if stream.resets == resets:
                assert stream.piece is not None
                if stream.piece.last:
                    stream.state = None
                stream.piece = None
                made.append(Made(stream, self.codec.pcm(sound)))
        return made

    def _failed(self, job: _Job, error: Exception) -> list[Made]:
        """The streams of the job; those of a voice that cannot be prepared are all that wait with it."""
        streams = [stream for stream, resets in job.streams if stream.resets == resets]
        if job.voice is not None:
            streams = [stream for stream in self._waiting if stream.voice is job.voice]
        for stream in streams:
            self.reset(stream)
        return [Made(stream, b"", error) for stream in streams]

    def _let_go(self) -> None:
        """Forget the states of voices that nobody speaks with, but for the latest."""
        idle = [key for key in self._prepared if not self._users[key]]
        for key in idle[: max(len(self._prepared) - self._most_voices, 0)]:
            self.codec.release(self._prepared.pop(key))
        self._users = +self._users
