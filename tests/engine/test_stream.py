"""Events on their way to readers in an event loop: together where they came together, ends behind the rest."""

from __future__ import annotations

import asyncio

import pytest

from sensorium.engine.stream import Stream, hand_out, running_loop
from sensorium.types import Finished, TextDelta, Timings, Usage


def stream(name: str) -> Stream:
    return Stream(name, lambda _: None, running_loop())


def delta(name: str, text: str = "a") -> TextDelta:
    return TextDelta(name, text, (1,))


def finished(name: str) -> Finished:
    return Finished(name, "stop", Usage(1, 1), Timings(0.0, 0.0, 0.0))


def test_what_arrived_is_read_together_and_nothing_comes_after_the_end() -> None:
    async def main() -> None:
        own = stream("r")
        reading = asyncio.create_task(own.arrived())
        await asyncio.sleep(0)
        hand_out([(own, delta("r", "a")), (own, delta("r", "b"))])
        assert [event.text for event in await reading] == ["a", "b"]
        hand_out([(own, delta("r", "c")), (own, finished("r"))])
        assert [type(event) async for event in own] == [TextDelta, Finished]
        assert await own.arrived() == []
        assert [event async for event in own] == []

    asyncio.run(main())


def test_a_reader_that_is_cancelled_leaves_the_events_to_the_next() -> None:
    async def main() -> None:
        own = stream("r")
        first, second = (asyncio.create_task(own.arrived()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        hand_out([(own, finished("r"))])
        assert await second == [finished("r")]
        assert first.cancelled()

    asyncio.run(main())


def test_what_begins_or_ends_comes_last_and_a_few_at_a_time() -> None:
    """However many do in a step, all others get their tokens in the same pass of the loop, and so do those that end."""

    async def main() -> None:
        seen = list[str]()

        async def read(own: Stream) -> None:
            async for event in own:
                seen.append(f"{own.request_id} {type(event).__name__}")

        async def passes(count: int) -> list[int]:
            """Events read in each pass until there are so many."""
            each = list[int]()
            while len(seen) < count:
                before = len(seen)
                await asyncio.sleep(0)
                each.append(len(seen) - before)
            return each

        going, ending, new = (["on1", "on2"], [f"end{i}" for i in range(5)], [f"new{i}" for i in range(5)])
        streams = {name: stream(name) for name in (*going, *ending, *new)}
        tasks = [asyncio.create_task(read(own)) for own in streams.values()]
        await asyncio.sleep(0)
        hand_out([(streams[name], delta(name)) for name in (*going, *ending)])
        assert max(await passes(7)) <= 2
        seen.clear()
        events = [*map(delta, new), *map(delta, ending), *map(finished, ending), *map(delta, going)]
        hand_out([(streams[event.request_id], event) for event in events])
        await passes(len(going) + len(ending))
        assert {f"{name} TextDelta" for name in (*going, *ending)} <= set(seen), "with the first of the others"
        # What comes for one that waits waits behind it.
        hand_out([(streams[name], event) for name in new for event in (delta(name), finished(name))])
        assert max(await passes(27)) <= len(new) + 2
        for name in ending:
            assert [one for one in seen if one.startswith(name)] == [f"{name} TextDelta", f"{name} Finished"]
        for name in new:
            mine = [one.split()[1] for one in seen if one.startswith(name)]
            assert mine == ["TextDelta", "TextDelta", "Finished"]
        await asyncio.gather(*(task for task, name in zip(tasks, streams, strict=True) if name not in going))
        for task in tasks:
            task.cancel()

    asyncio.run(main())


def test_an_event_that_cannot_be_taken_holds_up_no_other_stream() -> None:
    class Broken(Stream):
        def put(self, event) -> None:
            raise ValueError("no")

    async def main() -> None:
        errors = list[str]()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(str(context["exception"])))
        broken, good = Broken("broken", lambda _: None, loop), stream("good")
        hand_out([(broken, delta("broken")), (good, delta("good")), (good, finished("good"))])
        assert [type(event) async for event in good] == [TextDelta, Finished]
        assert errors == ["no"]

    asyncio.run(main())


def test_a_stream_made_elsewhere_is_read_by_a_thread() -> None:
    own = stream("r")
    hand_out([(own, delta("r")), (own, finished("r"))])
    assert [type(event) for event in own] == [TextDelta, Finished]
    with pytest.raises(RuntimeError, match="outside an event loop"):
        asyncio.run(stream("s").arrived())
