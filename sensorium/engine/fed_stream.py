"""A stream that is also fed: numbered items in, and for each exactly one event that ends it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from typing import Any

from sensorium.engine.stream import Stream
from sensorium.errors import EngineError, OverloadedError, SensoriumError
from sensorium.types import CallFailed, Event, Failed, Finished, Sound, UnitFailed


class FedStream(Stream):
    """Items that are there when the stream ends end with it.

    Made inside a running event loop it belongs to that loop, and events are read there; what is sent may be sent from
    anywhere. A subclass says which event ends an item, and what ends those that are left.
    """

    word, items, full = "stream", "items", "items"
    """What it is called in errors, what it is fed with, and the reason when it is full."""

    def __init__(
        self, name: str, send: Callable[[Any], None], abort: Callable[[str], None],
        loop: asyncio.AbstractEventLoop | None, most: int,
    ) -> None:  # fmt: skip
        """most: items fed and not read to their end."""
        super().__init__(name, abort, loop)
        self._send, self._most = send, most
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._open: set[int] = set()
        self._num_unread = 0
        self._ended = False

    def _ends(self, event: Event) -> int | None:
        """The item that an event ends."""
        raise NotImplementedError

    def _lost(self, number: int, code: str, message: str, status: int, turn: int) -> Event:
        """What ends an item that the stream's own end leaves behind."""
        raise NotImplementedError

    @property
    def room(self) -> int:
        """Items that may be sent now."""
        return self._most - self._num_unread

    def _feed(self, make: Callable[[int], Any]) -> int:
        """Send what `make` makes of the item's number; the number.

        Raises OverloadedError where there is no room, and EngineError once the stream has ended.
        """
        with self._lock:
            if self._ended:
                raise EngineError(f"{self.word} {self.request_id!r} has ended")
            if self._num_unread >= self._most:
                raise OverloadedError(
                    f"{self.word} {self.request_id!r} has {self._num_unread} {self.items} that are not read to their "
                    "end; read them first",
                    reason=self.full,
                )
            number = next(self._numbers)
            self._open.add(number)
            self._num_unread += 1
            # Under the lock, so that items arrive in the order of their numbers.
            self._send(make(number))
        return number

    def put(self, event: Event) -> None:
        number = self._ends(event)
        if number is not None:
            with self._lock:
                self._open.discard(number)
        elif isinstance(event, Finished | Failed):
            for lost in self._end(event):
                super().put(lost)
        super().put(event)

    def _end(self, event: Finished | Failed) -> list[Event]:
        with self._lock:
            self._ended = True
            left, self._open = sorted(self._open), set()
        code, message, status = f"{self.word}_closed", f"{self.word} {self.request_id!r} was closed", 409
        if isinstance(event, Failed):
            code, message, status = event.code, event.message, event.status
        return [self._lost(number, code, message, status, event.turn) for number in left]

    def _read(self, event: Event) -> Event:
        if self._ends(event) is not None:
            with self._lock:
                self._num_unread -= 1
        return super()._read(event)

    def _over(self) -> EngineError:
        return EngineError(f"{self.word} {self.request_id!r} has ended")


def failure(event: Failed | UnitFailed | CallFailed | Sound) -> SensoriumError:
    """What an event says, to be raised."""
    error = EngineError(event.message)
    error.code, error.status = event.code, 500 if isinstance(event, Sound) else event.status
    return error
