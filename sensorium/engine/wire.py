"""What crosses between a client and an engine process: typed messages in frames, arrays as they lie in memory.

A frame is a head (sizes), one MessagePack body that lists messages as [type number, content], and the bytes of every
array, in the order the body refers to them. Nothing is pickled. Both sides are of one version: one started the other.
"""

from __future__ import annotations

import queue
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sensorium.config import EngineConfig
from sensorium.engine.protocol import (
    Abort,
    AddVoice,
    AppendUnit,
    BargeIn,
    ChangeSpeech,
    CloseSession,
    EngineFacts,
    EngineStats,
    ForgetMedia,
    ForgetPrefixes,
    Hush,
    OpenSession,
    OpenSpeech,
    PauseSession,
    RefuseWaiting,
    RemoveVoice,
    RewindSession,
    Say,
)
from sensorium.types import (
    CallFailed,
    Codes,
    Failed,
    Finished,
    Pooled,
    PromptScored,
    Request,
    SessionOpened,
    Sound,
    TextDelta,
    UnitDone,
    UnitFailed,
    UnitPart,
)


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to an engine process."""

    config: EngineConfig
    log_level: int


@dataclass(frozen=True, slots=True)
class Loading:
    """Progress, as in checkpoint.Progress."""

    phase: str
    share: float


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The model cannot be loaded. code: of the SensoriumError it was."""

    code: str
    message: str
    param: str | None


@dataclass(frozen=True, slots=True)
class Pulse:
    """Ends every frame of a ready engine, and comes once a second without one. stuck_s as in Link."""

    stats: EngineStats
    stuck_s: float


@dataclass(frozen=True, slots=True)
class LogLine:
    """A log record of the engine process, to be handled where the caller's handlers are."""

    logger: str
    level: int
    message: str
    error: str | None
    created: float


TYPES: tuple[type, ...] = (
    *(Start, Request, Abort, RefuseWaiting, ForgetPrefixes, ForgetMedia),
    *(OpenSession, AppendUnit, RewindSession, BargeIn, PauseSession, CloseSession, ChangeSpeech),
    *(OpenSpeech, Say, Hush, AddVoice, RemoveVoice),
    *(Loading, StartFailed, EngineFacts, Pulse, LogLine),
    *(TextDelta, PromptScored, Pooled, SessionOpened, UnitPart, UnitDone, UnitFailed),
    *(Codes, CallFailed, Sound, Finished, Failed),
)
_NUMBERS: dict[type, int] = {kind: number for number, kind in enumerate(TYPES)}
_HEAD = struct.Struct("<IQ")
_POLL_MS = 500
_MOST_PER_FRAME = 256
PULSE_S = 1.0


def encode(messages: Iterable[object]) -> list[bytes | memoryview]:
    """One frame: head and body, then the arrays, not copied. Raises TypeError for what cannot cross."""
    arrays: list[memoryview] = []

    def hook(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                raise TypeError("arrays of Python objects cannot cross to the engine")
            arrays.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
            return len(arrays) - 1, value.dtype.str, value.shape
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, Path):
            return str(value)
        raise TypeError(f"{type(value).__name__} cannot cross to the engine")

    content = [(_NUMBERS[type(message)], message) for message in messages]
    body = msgspec.msgpack.encode(content, enc_hook=hook)
    sizes = struct.pack(f"<{len(arrays)}Q", *(array.nbytes for array in arrays))
    return [_HEAD.pack(len(arrays), len(body)) + sizes + body, *arrays]


class Decoder:
    """Frames to messages. For one thread."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._outer = msgspec.msgpack.Decoder(list[tuple[int, msgspec.Raw]])
        self._inner = [msgspec.msgpack.Decoder(kind, dec_hook=self._hook) for kind in TYPES]

    def decode(self, body: bytes | bytearray, arrays: list[np.ndarray]) -> list[Any]:
        """arrays: the bytes of each, uint8."""
        self._arrays = arrays
        try:
            return [self._inner[number].decode(content) for number, content in self._outer.decode(body)]
        finally:
            self._arrays = []

    def _hook(self, kind: type, value: Any) -> Any:
        if kind is np.ndarray:
            index, dtype, shape = value
            return self._arrays[index].view(dtype).reshape(shape)
        return kind(value)


class Connection:
    """One end of a socket pair. One thread may send while another receives."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._decoder = Decoder()
        self._poll = select.poll()
        self._poll.register(end.fileno(), select.POLLIN)

    def send(self, frame: Sequence[bytes | memoryview]) -> None:
        """Raises OSError once the other side is gone."""
        for part in frame:
            self._end.sendall(part)

    def receive(self, meanwhile: Callable[[], None]) -> list[Any]:
        """The messages of the next frame. Raises EOFError at the end; `meanwhile` is called while nothing comes."""
        count, length = _HEAD.unpack(self._read(_HEAD.size, meanwhile))
        sizes = struct.unpack(f"<{count}Q", self._read(8 * count, meanwhile))
        body = self._read(length, meanwhile)
        return self._decoder.decode(body, [np.frombuffer(self._read(size, meanwhile), np.uint8) for size in sizes])

    def close(self) -> None:
        self._end.close()

    def shut(self) -> None:
        """Let both sides read to the end and no further; wakes whoever waits."""
        try:
            self._end.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side was faster
            return

    def _read(self, size: int, meanwhile: Callable[[], None]) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            try:
                got = self._end.recv_into(view[filled:], flags=socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not self._poll.poll(_POLL_MS):
                    meanwhile()
                continue
            except OSError as error:
                raise EOFError from error
            if got == 0:
                raise EOFError
            filled += got
        return data


class Outbox:
    """The thread that sends. What cannot be encoded goes to `refused` with its error instead, and only that."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        refused: Callable[[object, Exception], None],
        pulse: Callable[[], Pulse | None] | None = None,
    ) -> None:
        self._connection = connection
        self._refused = refused
        self._pulse = pulse
        self._queue: queue.SimpleQueue[Sequence[object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, messages: Sequence[object]) -> None:
        """Messages that cross together. Never blocks."""
        self._queue.put(messages)

    def close(self) -> None:
        """Send what is there, unless the other side is gone, and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ending = False
        while not ending:
            messages, ending = self._next()
            if self._pulse is not None and (pulse := self._pulse()) is not None:
                messages.append(pulse)
            try:
                if messages:
                    self._connection.send(self._encode(messages))
            except OSError:  # the other side is gone; whoever receives has noticed
                return

    def _next(self) -> tuple[list[object], bool]:
        """What waits to be sent, and whether that is all."""
        messages: list[object] = []
        try:
            batch = self._queue.get(timeout=None if self._pulse is None else PULSE_S)
            while batch is not None:
                messages += batch
                if len(messages) >= _MOST_PER_FRAME:
                    return messages, False
                batch = self._queue.get_nowait()
        except queue.Empty:
            return messages, False
        return messages, True

    def _encode(self, messages: list[object]) -> Sequence[bytes | memoryview]:
        try:
            return encode(messages)
        except Exception:
            good: list[object] = []
            for message in messages:
                try:
                    encode([message])
                except Exception as error:
                    self._refused(message, error)
                else:
                    good.append(message)
            return encode(good)
