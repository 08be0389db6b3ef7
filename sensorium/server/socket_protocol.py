"""What uvicorn's WebSockets do not bound: what a peer may leave unread, and for how long after the end."""

from __future__ import annotations

import os
import socket
from asyncio import BaseTransport, TimerHandle

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

LINGER_S = 10.0
SEND_BUFFER = 128 << 10
"""Bytes that the system may hold for a peer: a few seconds of sound, which an interruption cannot call back."""


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """A connection that is cut off when its end has not reached the peer in LINGER_S."""

    _cut_off: TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "websocket.close":
            # It need not wait for what the peer has not read.
            self.writable.set()
        await super().send(message)

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            if not self.disconnected:
                self._cut_off = self.loop.call_later(LINGER_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut_off is not None:
            self._cut_off.cancel()
        super().connection_lost(exc)
