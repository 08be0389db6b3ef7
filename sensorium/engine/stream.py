"""The way back to a caller: one stream of events per request, read by a thread or in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from weakref import WeakKeyDictionary

from sensorium.types import Event, Failed, Finished

LAST = (Finished, Failed)
"""What a stream ends with."""
_AT_ONCE = 2
"""Events that begin or end answers, in one pass of an event loop."""


class Stream:
    """The events of one request: iterate it (or `async for`) to exactly one Finished or Failed.

    Made inside a running event loop it belongs to that loop; elsewhere it blocks the calling thread.
    """

    def __init__(self, request_id: str, abort: Callable[[str], None], loop: asyncio.AbstractEventLoop | None) -> None:
        self.request_id = request_id
        self.loop = loop
        self._abort = abort
        self._events: deque[Event] | queue.SimpleQueue[Event] = deque() if loop else queue.SimpleQueue()
        self._waiters: list[asyncio.Future[None]] = []
        """Readers in the loop that wait for an event. An asyncio.Queue does the same for several times the work."""
        self._done = False
        self.has_begun = False
        """Whether an event has come."""
        self.num_late = 0
        """Events that wait for their turn; see hand_out."""

    def abort(self) -> None:
        """End the request; its Finished("abort") still arrives. Harmless after the end."""
        if not self._done:
            self._abort(self.request_id)

    def __iter__(self) -> Iterator[Event]:
        if not isinstance(self._events, queue.SimpleQueue):
            raise RuntimeError("this stream was made in an event loop; use `async for`")
        while not self._done:
            yield self._read(self._events.get())

    async def __aiter__(self) -> AsyncIterator[Event]:
        while not self._done:
            events = await self._arrivals()
            yield self._read(events.popleft())

    async def arrived(self) -> list[Event]:
        """All that has arrived, at least one event: lets a slow reader merge deltas. Empty after the last one."""
        read: list[Event] = []
        if not self._done:
            events = await self._arrivals()
            while events:
                read.append(self._read(events.popleft()))
        return read

    async def _arrivals(self) -> deque[Event]:
        """Once there are some."""
        events, loop = self._events, self.loop
        if not isinstance(events, deque) or loop is None:
            raise RuntimeError("this stream was made outside an event loop; use a plain `for`")
        while not events:
            waiter = loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)
        return events

    def _read(self, event: Event) -> Event:
        """Every event passes here on its way to the reader."""
        self._done = isinstance(event, LAST)
        return event

    def put(self, event: Event) -> None:
        """Called by `hand_out` only, in the stream's own loop if it has one."""
        if not isinstance(self._events, deque):
            self._events.put(event)
            return
        self._events.append(event)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def hand_out(pairs: Iterable[tuple[Stream, Event]]) -> None:
    """Give events to their streams: one crossing per event loop, none for threads."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, Event]]] = defaultdict(list)
    for stream, event in pairs:
        if stream.loop is None:
            stream.put(event)
        else:
            by_loop[stream.loop].append((stream, event))
    for loop, own in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody reads any more
            loop.call_soon_threadsafe(_put_all, own)


def _put_all(pairs: list[tuple[Stream, Event]]) -> None:
    """What begins or ends an answer comes last, a few in each pass of the loop.

    The first piece and the end of an answer are many times the work of a piece between: where many come in one step,
    tokens are not to wait for them. Of an answer that ends, the last token is given with those of the others.
    """
    line = _lines.setdefault(asyncio.get_running_loop(), deque())
    moves = bool(line)
    for stream, event in pairs:
        if stream.has_begun and not stream.num_late and not isinstance(event, LAST):
            stream.put(event)
        else:
            stream.num_late += 1
            line.append((stream, event))
    if line and not moves:
        _put_some(line)


def _put_some(line: deque[tuple[Stream, Event]]) -> None:
    try:
        for _ in range(min(_AT_ONCE, len(line))):
            stream, event = line.popleft()
            stream.num_late -= 1
            stream.has_begun = True
            stream.put(event)
    finally:  # whatever is wrong with one, the others behind it get theirs
        if line:
            asyncio.get_running_loop().call_soon(_put_some, line)


_lines: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[tuple[Stream, Event]]] = WeakKeyDictionary()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this is called in."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
