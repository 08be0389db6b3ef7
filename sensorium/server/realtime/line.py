"""The WebSocket of a realtime session: bounded both ways, as live sessions' are, without a queue of what it sends.

Answers are made faster than they are played. Whoever tells something waits until the socket has taken it, so a client
on a slow line slows its own answers; only one that takes nothing at all is hung up on.
"""

from __future__ import annotations

import contextlib
from typing import Literal

from starlette.types import Receive, Send

from sensorium.server.live.clock import Clock
from sensorium.server.live.outbox import MAX_UNSENT_S, WATCH_S
from sensorium.server.live.sockets import Socket

MAX_MESSAGE = 16 << 20
"""Bytes: a piece of sound of 15 MiB, as OpenAI allows it."""


class Line(Socket):
    """What is written to a client that has gone is dropped: whoever reads is told that it has."""

    def __init__(self, receive: Receive, send: Send, clock: Clock) -> None:
        super().__init__(receive, send, clock, MAX_MESSAGE)
        self._num_writing = 0
        self._moved_s = 0.0

    async def write(self, data: str | bytes) -> None:
        if not self._num_writing:
            self._moved_s = self._clock.now()
        self._num_writing += 1
        try:
            with contextlib.suppress(OSError, RuntimeError):
                await super().write(data)
        finally:
            self._num_writing -= 1
            self._moved_s = self._clock.now()

    async def watch(self, end_s: float) -> Literal["slow_consumer", "expired"]:
        """Returns when the session has to end: the client takes nothing, or it is `end_s`."""
        while True:
            await self._clock.sleep_until(self._clock.now() + WATCH_S)
            now = self._clock.now()
            if self._num_writing and now - self._moved_s > MAX_UNSENT_S:
                return "slow_consumer"
            if now >= end_s:
                return "expired"
