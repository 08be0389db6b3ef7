"""What uvicorn's WebSockets do not bound: what a peer may leave unread, how it cuts what it sends, and for how long
after the end it may stay."""

from __future__ import annotations

import asyncio
import os
import socket
from asyncio import BaseTransport, TimerHandle
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

LINGER_S = 10.0
SEND_BUFFER = 128 << 10
"""Bytes that the system may hold for a peer: a few seconds of sound, which an interruption cannot call back."""
MAX_FRAGMENTS = 1 << 14
"""Frames of one message: 16 MiB in pieces of 1 KiB."""
MAX_CONTROL, CONTROL_S = 1000, 10.0
"""Pings and pongs within so many seconds."""
PIECE = 16 << 10
"""Bytes that are made frames at once: of the smallest frames, some ten milliseconds of work."""
TOO_BIG, POLICY = 1009, 1008


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """A connection that is cut off when its end has not reached the peer in LINGER_S."""

    _cut_off: TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unparsed = bytearray()
        self._num_control = 0
        self._counting_s = self.loop.time()

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    # ---- in --------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unparsed += data
        self._parse()

    def _parse(self) -> None:
        """Up to the next message. What follows it waits until the application has taken that."""
        while self._unparsed and not self.read_paused and not self.transport.is_closing():
            piece = bytes(self._unparsed[:PIECE])
            del self._unparsed[:PIECE]
            super().data_received(piece)

    async def receive(self) -> ASGIReceiveEvent:
        if not self.queue.empty():
            # A peer that always has something to say leaves the others their time.
            await asyncio.sleep(0)
        message = await super().receive()
        self._parse()
        return message

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self._fail(TOO_BIG, f"a message has more than {MAX_FRAGMENTS} frames")

    def handle_ping(self) -> None:
        if not self._floods():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if not self._floods():
            super().handle_pong(event)

    def _floods(self) -> bool:
        now = self.loop.time()
        if now - self._counting_s > CONTROL_S:
            self._counting_s, self._num_control = now, 0
        self._num_control += 1
        if self._num_control > MAX_CONTROL:
            self._fail(POLICY, f"more than {MAX_CONTROL} pings and pongs in {CONTROL_S:g} s")
        return self._num_control > MAX_CONTROL

    def _fail(self, code: int, reason: str) -> None:
        self.frames = []
        if not self.transport.is_closing():
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    # ---- out -------------------------------------------------------------------------------------------------------

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            # It need not wait for what the peer has not read.
            self.writable.set()
        await super().send(message)
        self._parse()

    def keepalive_timeout(self) -> None:
        if self.read_paused and self.ping_timeout is not None:
            # The answer may have come: it is this side that does not read.
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        super().keepalive_timeout()
        self._cut_off_later()

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            self._cut_off_later()

    def _cut_off_later(self) -> None:
        if not self.disconnected and self._cut_off is None:
            self._cut_off = self.loop.call_later(LINGER_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut_off is not None:
            self._cut_off.cancel()
        super().connection_lost(exc)
