"""One HTTP exchange from the outside: its id, its answer when something is raised, its line in the access log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
import time
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.engine.marks import Mark
from sensorium.errors import OverloadedError, SensoriumError
from sensorium.server.anthropic import error_body
from sensorium.server.errors import ClientGone, describe, printable
from sensorium.server.guard import is_anthropic
from sensorium.server.heap import Heap
from sensorium.server.metrics import Metrics
from sensorium.server.tracing import Tracer, attributes_of

log = logging.getLogger(__name__)
access_log = logging.getLogger("sensorium.access")

QUIET_PATHS = {"/health", "/ping", "/metrics"}
"""Not in the access log, but where its level is debug."""
UNCOUNTED_PATHS = QUIET_PATHS | {"/load", "/version"}
LINGER_S, IDLE_S = 10.0, 1.0
"""How long an answered client may go on sending, in all and between two pieces; clients on busy machines are slow."""
SMALL_BODY, SMALL_S = 64 << 10, 0.05
"""A body of at most so many bytes is taken in, if it comes so soon, before it is refused: that keeps the connection."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_random = random.Random()
"""Asking the system for each id would hand the interpreter to another thread each time."""
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error. headers: its own, without those that every answer carries."""

    status: int
    headers: list[tuple[bytes, bytes]]
    content: bytes


async def _nothing() -> Message:
    raise RuntimeError("this exchange has no channel")


async def _nowhere(_: Message) -> None:
    raise RuntimeError("this exchange has no channel")


class Exchange:
    """Watches what passes: whether the body was read, what was answered. Adds headers to the answer."""

    def __init__(self, scope: Scope, desk: Desk, receive: Receive = _nothing, send: Send = _nowhere) -> None:
        self.scope = scope
        self.path, self.handler = desk.place(scope["path"])
        self._config = desk.config
        self._metrics = desk.metrics
        self._counted = self.handler is None
        self._receive = receive
        self._send = send
        self.headers = Headers(scope=scope)
        self.status = self.received = self.sent = 0
        self.start = time.monotonic()
        given = self.headers.get("x-request-id", "")
        is_given = _REQUEST_ID.fullmatch(given) is not None
        self.id = given if is_given else f"{_random.getrandbits(128):032x}"
        length = self.headers.get("content-length", "0")
        self._body_pending = length != "0" or "transfer-encoding" in self.headers
        self._has_small_body = int(length) <= SMALL_BODY and "transfer-encoding" not in self.headers
        state: dict[str, Any] = scope.setdefault("state", {})
        state["own_id"] = self.id
        if is_given:
            state["given_id"] = given
        self.facts: dict[str, Any] = state.setdefault("facts", {})

    async def receive(self) -> Message:
        message = await self._receive()
        self.received += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
        if not message.get("more_body", False):
            self._body_pending = False
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.body":  # of most answers' messages by far
            self.sent += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.count()
        elif kind == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self.extra_headers]}
        elif kind == "websocket.accept":
            self.status = 101
        else:
            self.sent += len(message.get("body") or message.get("bytes") or message.get("text") or b"")
        await self._send(message)

    @property
    def extra_headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer carries."""
        if self._config.enable_request_id_headers:
            return [*_HEADERS, (b"x-request-id", self.id.encode())]
        return _HEADERS

    def count(self) -> None:
        """Count the exchange, once: before its last bytes leave, so that whoever has the answer finds it counted."""
        if not self._counted and self.handler is not None:
            self._counted = True
            seconds = time.monotonic() - self.start
            self._metrics.answered(self.scope["method"], self.handler, self.status, seconds, self.received, self.sent)

    def refusal(self, error: BaseException) -> Refusal:
        """The answer to an error, which is noted and counted."""
        status, body, headers = describe(error)
        if not isinstance(error, SensoriumError | asyncio.CancelledError):
            log.error("request %s failed", self.id, exc_info=error)
        elif self._config.log_error_stack:
            log.warning("request %s refused", self.id, exc_info=error)
        self.facts["error"] = body.error.code
        self._metrics.failed(body.error.code)
        if isinstance(error, OverloadedError):
            self._metrics.rejected(error.reason)
        content = error_body(error) if is_anthropic(self.scope["path"]) else msgspec.json.encode(body)
        headers |= {"content-type": "application/json", "content-length": str(len(content))}
        return Refusal(status, [(name.encode(), value.encode()) for name, value in headers.items()], content)

    async def refuse(self, error: BaseException) -> None:
        """Answer with an error, unless an answer has begun."""
        refusal = self.refusal(error)
        if self.status:
            return
        if self._body_pending and self._has_small_body and "expect" not in self.headers:
            await self._discard_body(SMALL_S)
        linger = self._body_pending and "expect" not in self.headers
        headers = [*refusal.headers, (b"connection", b"close")] if self._body_pending else refusal.headers
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": refusal.content, "more_body": linger})
        if linger:
            # Closing while the client still sends would reset the connection and lose the answer on its way.
            await self._discard_body(LINGER_S)
            await self.send({"type": "http.response.body"})

    async def _discard_body(self, longest_s: float) -> None:
        """Read on for so long at most, and only while something comes."""
        end = time.monotonic() + longest_s
        with contextlib.suppress(asyncio.TimeoutError):
            while self._body_pending and time.monotonic() < end:
                await asyncio.wait_for(self.receive(), min(IDLE_S, longest_s))


def _denying(send: Send) -> Send:
    """An answer to the request for a WebSocket says why there is none."""

    async def deny(message: Message) -> None:
        kind = message["type"]
        await send({**message, "type": f"websocket.{kind}"} if kind.startswith("http.") else message)

    return deny


class Desk:
    """Where exchanges are counted, logged and traced."""

    def __init__(
        self, metrics: Metrics, handlers: dict[str, str], config: ServerConfig, tracer: Tracer | None = None
    ) -> None:
        """handlers: exact path -> label in the metrics; other paths are counted as "other"."""
        self.metrics = metrics
        self.config = config
        self.tracer = tracer
        self._handlers = handlers
        self._json = config.log_format == "json"
        self._root = config.root_path.rstrip("/")
        self._silent = {"/" + path.strip("/") for path in config.disable_access_log_for_endpoints}

    def place(self, path: str) -> tuple[str, str | None]:
        """The path below the root, and its label; None is not counted."""
        path = path.removeprefix(self._root)
        return path, None if path in UNCOUNTED_PATHS else self._handlers.get(path, "other")

    def record(self, exchange: Exchange, marks: list[Mark] | None) -> None:
        """Trace the exchange, if that is wanted, and write its line. marks: what took how long."""
        end = time.monotonic()
        scope, path, handler = exchange.scope, exchange.path, exchange.handler
        if handler is not None and self.tracer is not None and marks is not None:
            attributes = attributes_of(scope["method"], path[:200], handler, exchange.status, exchange.facts)
            whole = Mark(f"{scope['method']} {handler}", exchange.start, end)
            exchange.facts["trace_id"] = self.tracer.record(whole, exchange.headers, attributes, marks)
        level = logging.DEBUG if path in QUIET_PATHS else logging.INFO
        if path in self._silent or not access_log.isEnabledFor(level):
            return
        client = scope.get("client")
        line = {
            "request_id": exchange.id,
            "client": client[0] if client else "",
            "method": scope["method"],
            "path": path[:200],
            "status": exchange.status,
            "seconds": round(end - exchange.start, 4),
            **exchange.facts,
        }
        if self._json:
            stamp = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            access_log.log(level, msgspec.json.encode(stamp | line).decode())
        else:
            access_log.log(level, " ".join(f"{name}={printable(str(value))}" for name, value in line.items()))


class Exchanges:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, desk: Desk) -> None:
        self._app = app
        self._desk = desk
        self._heap = Heap()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        self._desk.metrics.lag.watch()
        if scope["type"] == "websocket":
            scope["method"], send = "GET", _denying(send)
        exchange = Exchange(scope, self._desk, receive, send)
        tracer = self._desk.tracer
        with contextlib.nullcontext() if tracer is None else tracer.noting() as marks:
            try:
                await self._follow(exchange)
            finally:
                if (entered := scope["state"].get("entered")) is not None:
                    entered()
                exchange.count()
                self._desk.record(exchange, marks)
                self._heap.took(exchange.received)

    async def _follow(self, exchange: Exchange) -> None:
        try:
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except ClientGone:
            exchange.status = exchange.status or 499
            exchange.facts["error"] = "client_gone"
        except (Exception, asyncio.CancelledError) as error:
            await exchange.refuse(error)
