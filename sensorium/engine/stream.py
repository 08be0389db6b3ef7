"""The way back to a caller: one stream of events per request, read by a thread or in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from sensorium.types import Event, Failed, Finished


class Stream:
    """The events of one request: iterate it (or `async for`) to exactly one Finished or Failed.

    Made inside a running event loop it belongs to that loop; elsewhere it blocks the calling thread.
    """

    def __init__(self, request_id: str, abort: Callable[[str], None], loop: asyncio.AbstractEventLoop | None) -> None:
        self.request_id = request_id
        self.loop = loop
        self._abort = abort
        self._events: asyncio.Queue[Event] | queue.SimpleQueue[Event] = asyncio.Queue() if loop else queue.SimpleQueue()
        self._done = False

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
        if not isinstance(self._events, asyncio.Queue):
            raise RuntimeError("this stream was made outside an event loop; use a plain `for`")
        while not self._done:
            yield self._read(await self._events.get())

    def ready(self) -> list[Event]:
        """Events that have arrived already, without waiting: lets a slow reader merge deltas."""
        events: list[Event] = []
        while not self._done and not self._events.empty():
            events.append(self._read(self._events.get_nowait()))
        return events

    def _read(self, event: Event) -> Event:
        """Every event passes here on its way to the reader."""
        self._done = isinstance(event, Finished | Failed)
        return event

    def put(self, event: Event) -> None:
        """Called by `hand_out` only, in the stream's own loop if it has one."""
        self._events.put_nowait(event)


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
    for stream, event in pairs:
        stream.put(event)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this is called in."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
