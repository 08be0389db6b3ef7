"""What the doors of live sessions share: a socket of bounded messages, and when to hang up on its client."""

from __future__ import annotations

import contextlib
from collections import deque

from starlette.types import Message, Receive, Send

from sensorium.server.live.clock import Clock

START_S = 10.0
"""For the first message."""
MAX_ERRORS, ERRORS_S = 32, 10.0
NORMAL, GOING, POLICY, TOO_BIG, FAILED, FULL = 1000, 1001, 1008, 1009, 1011, 1013


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

    async def write(self, data: str | bytes) -> None:
        kind = "text" if isinstance(data, str) else "bytes"
        await self._send({"type": "websocket.send", kind: data})

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
