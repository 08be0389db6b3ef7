"""A session whose connection is all there is of it: both end together."""

from __future__ import annotations

import asyncio
from typing import Protocol

from sensorium.server.live.outbox import Outbox, SlowReaderError
from sensorium.server.live.service import LiveService
from sensorium.server.live.session import LiveSession
from sensorium.server.live.sockets import POLICY, Socket, both_ways


class LeavingTalk(Protocol):
    """A session in the words of a door."""

    session: LiveSession
    outbox: Outbox
    close_code: int

    async def follow(self) -> None:
        """Write down the session to its end."""
        ...

    def take(self, data: str | bytes) -> bool: ...


async def hold(talk: LeavingTalk, service: LiveService, socket: Socket) -> None:
    """Until either ends. Raises HangUpError, or OSError where the client went while it was written to."""
    following = asyncio.create_task(talk.follow())
    service.num_sockets += 1
    try:
        ending = await both_ways(talk, socket)
        service.leave(talk.session)
        if ending is None:
            await socket.close(talk.close_code)
        elif isinstance(ending, SlowReaderError):
            await socket.close(POLICY, "slow_consumer")
        else:
            raise ending
    finally:
        service.num_sockets -= 1
        # Nobody is told any more what the session says; it ends by itself.
        await asyncio.wait((following,))
