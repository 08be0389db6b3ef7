"""Answers that are sent as they are made: server-sent events, or bytes; written as raw ASGI messages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType

import msgspec
from starlette.types import Send

from sensorium.server.errors import ClientGone, describe

STUCK_S = 30.0
"""A client that takes nothing for so long is given up."""
TICK_S = 5.0
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def frame(payload: bytes, event: str | None = None) -> bytes:
    """One event, named or not."""
    named = b"" if event is None else f"event: {event}\n".encode()
    return named + b"data: " + payload + b"\n\n"


DONE = frame(b"[DONE]")


def failure_frames(error: BaseException) -> bytes:
    """What OpenAI's streams end with when something goes wrong."""
    return frame(msgspec.json.encode(describe(error)[1])) + DONE


class EventStream:
    """One response. Used as a context: whatever is raised inside is told to the client as the last frames."""

    def __init__(
        self,
        send: Send,
        keep_alive_s: float,
        failure: Callable[[BaseException], bytes] | None = failure_frames,
        media_type: str = "text/event-stream; charset=utf-8",
    ) -> None:
        """keep_alive_s: silence after which a comment is sent, so that proxies keep the connection; 0 is never.
        failure: the last frames for what was raised; without, the answer breaks off."""
        self._send = send
        self._media_type = media_type
        self._keep_alive_s = keep_alive_s
        self._failure = failure
        self._loop = asyncio.get_running_loop()
        self._touched = self._loop.time()
        self._sending = self._stuck = self._ended = False

    async def __aenter__(self) -> EventStream:
        headers = [(b"content-type", self._media_type.encode()), *_HEADERS]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._writer = asyncio.current_task()
        self._tending = asyncio.create_task(self._tend())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tending.cancel()
        if error is not None and not isinstance(error, ClientGone) and not self._ended and self._failure is not None:
            last = self._failure(error)
            with contextlib.suppress(asyncio.TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(self._send({"type": "http.response.body", "body": last}), 1.0)

    async def write(self, *frames: bytes, more: bool = True) -> None:
        """Send frames as one piece. Raises ClientGone if the client takes nothing any more."""
        if not frames:
            return
        self._touched = self._loop.time()
        self._sending = True
        try:
            await self._send({"type": "http.response.body", "body": b"".join(frames), "more_body": more})
        except asyncio.CancelledError:
            if self._stuck:
                raise ClientGone from None
            raise
        self._sending = False

    async def end(self, *frames: bytes) -> None:
        """Send the last frames and close."""
        self._ended = True
        await self.write(*(frames or (b"",)), more=False)

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(min(TICK_S, self._keep_alive_s / 3 or TICK_S))
            quiet_s = self._loop.time() - self._touched
            if self._sending and quiet_s > STUCK_S and self._writer is not None:
                self._stuck = True
                self._writer.cancel()
                return
            if not self._sending and self._keep_alive_s and quiet_s > self._keep_alive_s:
                self._touched = self._loop.time()
                await self._send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})
