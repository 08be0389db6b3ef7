"""Server-sent events, written as raw ASGI messages."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

import msgspec
from starlette.types import Send

from sensorium.server.errors import ClientGone, describe

KEEP_ALIVE_S = 15.0
"""Silence after which a comment is sent, so that proxies keep the connection during a long prefill."""
STUCK_S = 30.0
"""A client that takes nothing for so long is given up."""
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """One response. Used as a context: whatever is raised inside is told to the client as a last error event."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._touched = self._loop.time()
        self._sending = self._stuck = self._ended = False

    async def __aenter__(self) -> EventStream:
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        self._writer = asyncio.current_task()
        self._tending = asyncio.create_task(self._tend())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tending.cancel()
        if error is not None and not isinstance(error, ClientGone) and not self._ended:
            last = _event(msgspec.json.encode(describe(error)[1])) + _event(b"[DONE]")
            with contextlib.suppress(asyncio.TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._send({"type": "http.response.body", "body": last}), 1.0)

    async def write(self, *payloads: bytes) -> None:
        """Send JSON payloads as one piece. Raises ClientGone if the client takes nothing any more."""
        await self._write(b"".join(map(_event, payloads)), more=True)

    async def end(self, *payloads: bytes) -> None:
        """Send the last payloads and [DONE]."""
        self._ended = True
        await self._write(b"".join(map(_event, (*payloads, b"[DONE]"))), more=False)

    async def _write(self, data: bytes, *, more: bool) -> None:
        self._touched = self._loop.time()
        self._sending = True
        try:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        except asyncio.CancelledError:
            if self._stuck:
                raise ClientGone from None
            raise
        self._sending = False

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_S / 3)
            quiet_s = self._loop.time() - self._touched
            if self._sending and quiet_s > STUCK_S and self._writer is not None:
                self._stuck = True
                self._writer.cancel()
                return
            if not self._sending and quiet_s > KEEP_ALIVE_S:
                self._touched = self._loop.time()
                await self._send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})


def _event(payload: bytes) -> bytes:
    return b"data: " + payload + b"\n\n"
