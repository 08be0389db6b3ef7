"""Refusals for want of room, while they still cost next to nothing: before a body is read, parsed and prepared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from sensorium.errors import OverloadedError, SensoriumError
from sensorium.server.exchange import Desk, Exchange, Refusal
from sensorium.server.guard import Guard
from sensorium.server.served import Served


class Gate:
    """Lets no request for generated text or vectors in that the engine would only refuse once it is prepared."""

    def __init__(self, served: Served, paths: Collection[str], root_path: str) -> None:
        """paths: where POST asks for such work."""
        self._served = served
        self._paths = frozenset(paths)
        self._root = root_path.rstrip("/")

    def check(self, scope: Scope) -> None:
        """Raises OverloadedError."""
        if scope["type"] == "http" and scope["method"] == "POST":
            client = self._served.loaded
            if client is not None and scope["path"].removeprefix(self._root) in self._paths:
                client.refuse_if_full()


class Checked:
    """Calls the application with what passes every check."""

    def __init__(self, app: ASGIApp, checks: Sequence[Callable[[Scope], None]]) -> None:
        self._app = app
        self._checks = checks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            for check in self._checks:
                check(scope)
        await self._app(scope, receive, send)


class Doorstep:
    """Refuses requests that have arrived whole where they arrived, without a task and the layers of the application.

    Under overload there are many times more refusals than answers, and they take the answers' cores. Only what is
    refused for want of room alone is refused here; whatever else may be wrong is found on the usual way.
    """

    def __init__(self, gate: Gate, guard: Guard, desk: Desk) -> None:
        self._gate, self._guard, self._desk = gate, guard, desk

    def refusal(self, scope: Scope, received: int) -> Refusal | None:
        """The answer, already counted and logged; None where there is none yet. received: bytes of the body."""
        try:
            self._gate.check(scope)
        except OverloadedError as full:
            return self._refused(scope, received, full)
        return None

    def _refused(self, scope: Scope, received: int, full: OverloadedError) -> Refusal | None:
        try:
            self._guard.check(scope)
        except SensoriumError:
            return None
        if any(name == b"origin" for name, _ in scope["headers"]):  # a page of another origin needs headers for that
            return None
        exchange = Exchange(scope, self._desk)
        exchange.received = received
        refusal = exchange.refusal(full)
        exchange.status, exchange.sent = refusal.status, len(refusal.content)
        exchange.count()
        self._desk.record(exchange, [])
        return Refusal(refusal.status, [*refusal.headers, *exchange.extra_headers], refusal.content)
