"""Several requests of one HTTP request: so many at a time in the engine, their events as they come, ended together."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from sensorium.types import Event, Failed, Finished

if TYPE_CHECKING:
    from sensorium.engine.client import Stream

Job = Callable[[], "Stream"]


class Fleet:
    """A context: entering submits the first jobs and raises what that raises, leaving aborts what still runs.

    Iterating gives lists of (number of the job, event), those that are ready together as one list, and submits the
    next job for each that ends. A Failed ends the iteration as any other last event does: whoever reads it decides.
    """

    def __init__(self, jobs: Sequence[Job], window: int) -> None:
        self._waiting = deque(enumerate(jobs))
        self._window = window
        self._streams: dict[int, Stream] = {}
        self._pumps: dict[int, asyncio.Task[None]] = {}
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    async def __aenter__(self) -> Fleet:
        try:
            self._launch()
        except BaseException:
            self._abort()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abort()

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, Event]]]:
        while self._streams:
            events = [await self._events.get()]
            with contextlib.suppress(asyncio.QueueEmpty):
                while True:
                    events.append(self._events.get_nowait())
            for number, event in events:
                if isinstance(event, Finished | Failed):
                    del self._streams[number], self._pumps[number]
            self._launch()
            yield events

    def _launch(self) -> None:
        while self._waiting and len(self._streams) < self._window:
            number, job = self._waiting.popleft()
            self._streams[number] = stream = job()
            self._pumps[number] = asyncio.create_task(self._pump(number, stream))

    async def _pump(self, number: int, stream: Stream) -> None:
        async for event in stream:
            self._events.put_nowait((number, event))

    def _abort(self) -> None:
        for stream in self._streams.values():
            stream.abort()
        for pump in self._pumps.values():
            pump.cancel()
