"""What the doors of live sessions share: a socket of bounded messages, and when to hang up on its client."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec
from starlette.types import Message, Receive, Scope, Send

from sensorium.errors import OverloadedError, RequestError, SensoriumError
from sensorium.server.live.clock import Clock, within
from sensorium.server.live.outbox import Outbox
from sensorium.server.seats import Seats

T = TypeVar("T")
_PATH = re.compile(r" - at `\$\.?(.*)`$")
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`")

START_S = 10.0
"""For the first message."""
MAX_ERRORS, ERRORS_S = 32, 10.0
NORMAL, GOING, POLICY, TOO_BIG, FAILED, FULL = 1000, 1001, 1008, 1009, 1011, 1013

CLOSE_CODES = {"shutting_down": GOING, "engine_restarted": 1012, "failed": FAILED, "lost": GOING}
"""Of a session that ended for such a reason; all others close with NORMAL."""


class HangUpError(Exception):
    """The connection ends; code: None where the client has gone already."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class Socket:
    """One WebSocket after its handshake."""

    def __init__(self, receive: Receive, send: Send, clock: Clock, max_message: int) -> None:
        self._receive = receive
        self._send = send
        self._clock = clock
        self._max = max_message
        self._errors: deque[float] = deque()

    async def read(self) -> str | bytes:
        """The next message. Raises HangUpError."""
        message: Message = await self._receive()
        if message["type"] != "websocket.receive":
            raise HangUpError(None)
        text = message.get("text")
        data: str | bytes = text if text is not None else message.get("bytes") or b""
        # Characters of text take up to four bytes each; most take one.
        if len(data) > self._max or (isinstance(data, str) and len(data) * 4 > self._max < len(data.encode())):
            raise HangUpError(TOO_BIG)
        return data

    async def first(self) -> str | bytes:
        """The first message. Raises asyncio.TimeoutError where it does not come in START_S."""
        return await within(self._clock, START_S, self.read())

    async def write(self, data: str | bytes) -> None:
        kind = "text" if isinstance(data, str) else "bytes"
        await self._send({"type": "websocket.send", kind: data})

    async def refuse(self, error: SensoriumError, told: str) -> None:
        """Tell a client why there is no session, and hang up."""
        await self.write(told)
        hint = f"; try again in {error.retry_after_s:.0f} s" if isinstance(error, OverloadedError) else ""
        await self.close(FULL if error.status in (429, 503) else POLICY, error.code + hint)

    async def close(self, code: int, reason: str = "") -> None:
        """Harmless where the client has gone."""
        with contextlib.suppress(OSError, RuntimeError):
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    def wrong(self) -> None:
        """Count a message that was answered with an error. Raises HangUpError where there are too many."""
        now = self._clock.now()
        self._errors.append(now)
        while now - self._errors[0] > ERRORS_S:
            self._errors.popleft()
        if len(self._errors) > MAX_ERRORS:
            raise HangUpError(POLICY)


async def accepted(
    scope: Scope, receive: Receive, send: Send, clock: Clock, max_message: int, subprotocol: str | None = None
) -> tuple[Socket, str]:
    """A connection after its handshake, and the key that it came with.

    subprotocol: named to clients that offer it.
    """
    await receive()
    offered = subprotocol in scope.get("subprotocols", ())
    await send({"type": "websocket.accept", "subprotocol": subprotocol if offered else None})
    return Socket(receive, send, clock, max_message), scope.get("state", {}).get("key", "")


async def answer_first(
    socket: Socket,
    seats: Seats,
    key: str,
    answer: Callable[[str | bytes], Awaitable[None]],
    missing: str,
    greeting: str = "",
) -> None:
    """Give `answer` the first message, after a greeting where there is one; hang up where it or what follows says so.

    key: whose connection it is; missing: the reason of the close where no message comes in time.
    """
    try:
        with seats.silent(key):
            if greeting:
                await socket.write(greeting)
            first = await socket.first()
        await answer(first)
    except OverloadedError as full:
        await socket.close(FULL, f"{full.code}; try again in {full.retry_after_s:g} s")
    except asyncio.TimeoutError:
        await socket.close(POLICY, missing)
    except HangUpError as error:
        if error.code is not None:
            await socket.close(error.code)
    except OSError:
        pass  # the client went while something was written to it


class Talk(Protocol):
    """A session in the words of one door."""

    outbox: Outbox

    def take(self, data: str | bytes) -> bool: ...


async def both_ways(talk: Talk, socket: Socket, until: asyncio.Event | None = None) -> BaseException | None:
    """Read and write until one of them ends, or `until` is set: what ended it; None when all has been sent."""
    reading = asyncio.create_task(_read(talk, socket))
    sending = asyncio.create_task(talk.outbox.pump(socket.write))
    waiting = asyncio.create_task((until or asyncio.Event()).wait())
    tasks = (sending, reading, waiting)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            return sending.exception()
        return reading.exception() if reading.done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _read(talk: Talk, socket: Socket) -> None:
    while True:
        if not talk.take(await socket.read()):
            socket.wrong()


def decoded(decoder: msgspec.json.Decoder[T], data: str | bytes) -> T:
    """A message of a socket that takes text frames. Raises RequestError naming what is wrong with it."""
    if isinstance(data, bytes):
        raise RequestError("this socket takes JSON in text frames")
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        text = str(error)
        match = _PATH.search(text)
        param = match[1] if match else ""
        reason = text[: match.start()] if match else text
        if field := _FIELD.match(reason):
            param = f"{param}.{field[2]}".lstrip(".")
            reason = "unknown field" if field[1] == "contains unknown" else "this field is required"
        param = param or "type"
        raise RequestError(f"{param[:100]}: {reason[:300]}", param=param[:100]) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise RequestError("the message is not JSON") from None
