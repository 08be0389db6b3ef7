"""A crowd of requests that comes together does not hold up the streams that are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sensorium.server.protocol import Entrance


def test_requests_begin_one_in_each_pass_of_the_loop() -> None:
    async def main() -> list[str]:
        loop, entrance, seen = asyncio.get_running_loop(), Entrance(), list[str]()

        def piece(number: int) -> None:
            seen.append("piece")
            if number:
                loop.call_soon(piece, number - 1)

        for number in range(4):
            entrance.enter(lambda _, number=number: seen.append(f"request {number}"))
        loop.call_soon(piece, 4)
        for _ in range(6):
            await asyncio.sleep(0)
        return seen

    seen = asyncio.run(main())
    assert seen == [word for number in range(4) for word in (f"request {number}", "piece")] + ["piece"]


def test_few_begin_side_by_side() -> None:
    """The next begins when one has reached the engine or has ended; that it says so twice lets in one."""

    async def main() -> None:
        entrance, inside = Entrance(), list[Callable[[], None]]()

        async def settle() -> int:
            for _ in range(40):
                await asyncio.sleep(0)
            return len(inside)

        for _ in range(12):  # a crowd whose bodies never come keeps nobody out
            entrance.enter(inside.append, waits=True)
        assert await settle() == 12
        inside.clear()
        for _ in range(30):
            entrance.enter(inside.append)
        assert await settle() == 8
        for place in (inside[3], inside[3], inside[0]):
            place()
        assert await settle() == 10
        while await settle() < 30:  # one that takes long is not waited for
            pass
        inside[29]()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_one_that_cannot_begin_does_not_shut_the_door() -> None:
    async def main() -> list[str]:
        loop, entrance, seen = asyncio.get_running_loop(), Entrance(), list[str]()
        loop.set_exception_handler(lambda _, context: seen.append(str(context["exception"])))

        def fail(_: Callable[[], None]) -> None:
            raise ValueError("no")

        entrance.enter(fail)
        entrance.enter(lambda _: seen.append("in"))
        for _ in range(3):
            await asyncio.sleep(0)
        entrance.enter(lambda _: seen.append("later"))
        await asyncio.sleep(0)
        return seen

    assert asyncio.run(main()) == ["no", "in", "later"]
