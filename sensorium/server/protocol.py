"""What uvicorn does not bound by itself: the size of a request's head and the time it may take to arrive."""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from sensorium.server.errors import error_body
from sensorium.server.gate import Doorstep

HEAD_S = 10.0
MAX_TARGET, MAX_HEAD, MAX_HEADERS = 8 << 10, 32 << 10, 100
_SIDE_BY_SIDE, _BEGINNING_S = 8, 0.02
"""So many requests begin side by side, for so long at most."""
_STATUS = {400: "Bad Request", 414: "URI Too Long", 431: "Request Header Fields Too Large"}


class Entrance:
    """Lets requests begin one by one, one in each pass of the event loop, and a few side by side.

    Streams that are under way are written in between: a crowd that comes together would hold all of them up for as long
    as the whole of it takes to begin. And it would be read, checked and prepared side by side: the engine is to have
    the first while others are read.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[Callable[[], None]], None], bool]] = deque()
        self._inside = 0
        self._moves = False

    def enter(self, begin: Callable[[Callable[[], None]], None], waits: bool = False) -> None:
        """In the event loop. begin: is given what to call, once or more, when the next may begin: where this one has
        reached the engine, or has ended. One that takes long until then is not waited for, nor one that `waits` for the
        rest of its body."""
        self._waiting.append((begin, waits))
        self._move()

    def _move(self) -> None:
        if self._waiting and self._inside < _SIDE_BY_SIDE and not self._moves:
            self._moves = True
            asyncio.get_running_loop().call_soon(self._let_in)

    def _let_in(self) -> None:
        begin, waits = self._waiting.popleft()
        self._inside += 1
        place = _Place(self._left)
        try:
            begin(place.leave)
        finally:
            if waits:
                place.leave()
            self._moves = False
            self._move()

    def _left(self) -> None:
        self._inside -= 1
        self._move()


class _Place:
    """Of one request that begins."""

    def __init__(self, left: Callable[[], None]) -> None:
        self._left: Callable[[], None] | None = left
        self._timer = asyncio.get_running_loop().call_later(_BEGINNING_S, self.leave)

    def leave(self) -> None:
        left, self._left = self._left, None
        if left is not None:
            self._timer.cancel()
            left()


class BoundedProtocol(HttpToolsProtocol):
    """A connection on which a head larger than MAX_HEAD is refused and one slower than HEAD_S is hung up on.

    A request's task starts when the bytes at hand have been parsed: what is whole by then may be refused without one.
    """

    def __init__(
        self, *args: Any, doorstep: Doorstep | None = None, entrance: Entrance | None = None, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self._doorstep = doorstep
        self._entrance = entrance or Entrance()
        self._parsing = False
        self._held: tuple[RequestResponseCycle, Any] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._refusal = (400, "invalid_http", "the request is not valid HTTP")
        self._head_size = 0
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            # A first line or a header that does not end is kept by the parser: count what arrives, not what is parsed.
            self._head_size += min(len(data), MAX_HEAD + 1)
        self._parsing = True
        super().data_received(data)
        self._parsing, held, self._held = False, self._held, None
        if held is not None and not self._refused(held[0]):
            self._entrance.enter(functools.partial(self._begin, *held), waits=held[0].more_body)
        if self._in_head and self._head_size > MAX_HEAD and not self.transport.is_closing():
            self._refusal = (431, "headers_too_large", f"the request's head is larger than {MAX_HEAD} bytes")
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._headers_size = 0
        if not self._in_head:
            self._head_size = 0
            self._await_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_TARGET:
            self._refuse(414, "target_too_long", f"the request's target is longer than {MAX_TARGET} bytes")
        if not self.url.startswith(b"/"):
            self._refuse(400, "invalid_target", "the request's target must be a path")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._headers_size += len(name) + len(value)
        if self._headers_size > MAX_HEAD or len(self.headers) > MAX_HEADERS:
            self._refuse(431, "headers_too_large", "the request has too many or too large headers")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_timer.cancel()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        status, code, message = self._refusal
        body = msgspec.json.encode(error_body(status, code, message))
        head = f"HTTP/1.1 {status} {_STATUS[status]}\r\ncontent-type: application/json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._parsing:
            self._held = cycle, app
        else:
            super()._start_asgi_task(cycle, app)

    def _begin(self, cycle: RequestResponseCycle, app: Any, entered: Callable[[], None]) -> None:
        cycle.scope.setdefault("state", {})["entered"] = entered
        super()._start_asgi_task(cycle, app)

    def _refused(self, cycle: RequestResponseCycle) -> bool:
        """Answer at once if there is no room for the request. A client that reads nothing is left to a task."""
        if self._doorstep is None or cycle.more_body or self.flow.write_paused or self.transport.is_closing():
            return False
        scope: Any = cycle.scope
        refusal = self._doorstep.refusal(scope, len(cycle.body))
        if refusal is None:
            return False
        headers = [*cycle.default_headers, *refusal.headers, *([] if cycle.keep_alive else [(b"connection", b"close")])]
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        self.transport.write(b"".join([STATUS_LINE[refusal.status], *lines, b"\r\n", refusal.content]))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()
        return True

    def _await_head(self) -> None:
        self._in_head = True
        self._head_timer = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Stop parsing; uvicorn answers a parser error through send_400_response."""
        self._refusal = (status, code, message)
        raise ValueError(message)
