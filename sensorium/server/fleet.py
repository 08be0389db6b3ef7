"""Several sequences of one HTTP request: so many at a time in the engine, their events as they come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from sensorium.types import Event, Failed, Finished

if TYPE_CHECKING:
    from sensorium.engine.client import Stream


class Fleet:
    """Iterating gives lists of (number of the sequence, event), those that are ready together as one list.

    At most `window` of the `count` sequences run at once; as one ends the next is submitted. A Failed ends only its own
    sequence here: whoever reads it decides about the others.
    """

    def __init__(self, submit: Callable[[int], Stream], count: int, window: int) -> None:
        self._submit = submit
        self._waiting = iter(range(count))
        self._alone = count == 1
        self._window = window
        self._streams: dict[int, Stream] = {}
        self._pumps: dict[int, asyncio.Task[None]] = {}
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def launch(self) -> None:
        """Fill the window. Raises what `submit` raises."""
        while len(self._streams) < self._window and (number := next(self._waiting, None)) is not None:
            self._streams[number] = stream = self._submit(number)
            if not self._alone:
                self._pumps[number] = asyncio.create_task(self._pump(number, stream))

    def abort(self) -> None:
        """End what runs. Harmless when nothing does."""
        for stream in self._streams.values():
            stream.abort()
        for pump in self._pumps.values():
            pump.cancel()

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, Event]]]:
        if self._alone:  # without the way through a task and a queue
            stream = self._streams[0]
            while events := await stream.arrived():
                yield [(0, event) for event in events]
        while self._streams and not self._alone:
            events = [await self._events.get()]
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    events.append(self._events.get_nowait())
            for number, event in events:
                if isinstance(event, Finished | Failed):
                    del self._streams[number], self._pumps[number]
            self.launch()
            yield events

    async def _pump(self, number: int, stream: Stream) -> None:
        async for event in stream:
            self._events.put_nowait((number, event))
