"""What is on its way to a client: in order, bounded, kept a while for a client that comes back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sensorium.server.live.clock import Clock

MAX_UNSENT_BYTES, MAX_UNSENT_S = 1 << 20, 30.0
WATCH_S = 1.0
MAX_KEPT, MAX_KEPT_BYTES = 512, 2 << 20
Message = str | bytes


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A message. number: which one of its kind it is, None for those that are never sent again."""

    data: Message
    is_sound: bool
    number: int | None
    put_s: float


class SlowReaderError(Exception):
    """The client does not read what it is sent."""


class Outbox:
    """Filled by a session, emptied into one socket at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._sent: deque[Parcel] = deque()
        self._unsent: deque[Parcel] = deque()
        self._sent_bytes = self._unsent_bytes = 0
        self._more = asyncio.Event()
        self._slow = asyncio.Event()
        self._has_socket = False
        self.is_ending = False
        """Set with the last message: emptying it is the end."""

    def put(self, data: Message, *, is_sound: bool = False, number: int | None = None) -> None:
        parcel = Parcel(data, is_sound, number, self._clock.now())
        self._unsent.append(parcel)
        self._unsent_bytes += len(data)
        self._check()
        self._more.set()

    def _check(self) -> None:
        """Whether the socket keeps up; where there is none, old messages make way."""
        if self._has_socket:
            late = bool(self._unsent) and self._clock.now() - self._unsent[0].put_s > MAX_UNSENT_S
            if late or self._unsent_bytes > MAX_UNSENT_BYTES:
                self._slow.set()
            return
        while len(self._unsent) > MAX_KEPT or self._unsent_bytes > MAX_KEPT_BYTES:
            self._unsent_bytes -= len(self._unsent.popleft().data)

    def drop_sound(self) -> None:
        """Sound that has not been sent never will be."""
        self._unsent = deque(parcel for parcel in self._unsent if not parcel.is_sound)
        self._unsent_bytes = sum(len(parcel.data) for parcel in self._unsent)

    def rewind(self, message: int, sound: int) -> bool:
        """Send again from these numbers on, of messages and of sound. False where some are not there any more."""
        kept = [*self._sent, *self._unsent]
        again = [p for p in kept if p.number is not None and p.number >= (sound if p.is_sound else message)]
        whole = True
        for is_sound, first in ((False, message), (True, sound)):
            numbers = [p.number for p in kept if p.is_sound is is_sound and p.number is not None]
            whole &= not numbers or numbers[0] <= first
        self._sent.clear()
        now = self._clock.now()
        self._unsent = deque(Parcel(p.data, p.is_sound, p.number, now) for p in again)
        self._sent_bytes, self._unsent_bytes = 0, sum(len(p.data) for p in again)
        self._more.set()
        return whole

    async def pump(self, send: Callable[[Message], Awaitable[None]]) -> None:
        """Empty it into a socket, to the end. Raises SlowReaderError."""
        self._has_socket = True
        self._slow.clear()
        sending = asyncio.create_task(self._pump(send))
        slow = asyncio.create_task(self._slow.wait())
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.wait((sending, slow), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                raise SlowReaderError
            sending.result()
        finally:
            self._has_socket = False
            for task in (sending, slow, watching):
                task.cancel()
            await asyncio.wait((sending, slow, watching))

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now() + WATCH_S)
            self._check()

    async def _pump(self, send: Callable[[Message], Awaitable[None]]) -> None:
        while self._unsent or not self.is_ending:
            self._more.clear()
            while self._unsent:
                parcel = self._unsent[0]
                # It counts as unsent until the socket has taken it, so a reader that stops is seen to be one.
                await send(parcel.data)
                if self._unsent and self._unsent[0] is parcel:
                    self._unsent.popleft()
                    self._unsent_bytes -= len(parcel.data)
                    self._keep(parcel)
            if not self.is_ending:
                await self._more.wait()

    def _keep(self, parcel: Parcel) -> None:
        if parcel.number is None:
            return
        self._sent.append(parcel)
        self._sent_bytes += len(parcel.data)
        while len(self._sent) > MAX_KEPT or self._sent_bytes > MAX_KEPT_BYTES:
            self._sent_bytes -= len(self._sent.popleft().data)
