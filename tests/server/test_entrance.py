"""A crowd of requests that comes together does not hold up the streams that are under way."""

from __future__ import annotations

import asyncio

from sensorium.server.protocol import Entrance


def test_requests_begin_one_in_each_pass_of_the_loop() -> None:
    async def main() -> list[str]:
        loop, entrance, seen = asyncio.get_running_loop(), Entrance(), list[str]()

        def piece(number: int) -> None:
            seen.append("piece")
            if number:
                loop.call_soon(piece, number - 1)

        for number in range(4):
            entrance.enter(lambda number=number: seen.append(f"request {number}"))
        loop.call_soon(piece, 4)
        for _ in range(6):
            await asyncio.sleep(0)
        return seen

    seen = asyncio.run(main())
    assert seen == [word for number in range(4) for word in (f"request {number}", "piece")] + ["piece"]


def test_one_that_cannot_begin_does_not_shut_the_door() -> None:
    async def main() -> list[str]:
        loop, entrance, seen = asyncio.get_running_loop(), Entrance(), list[str]()
        loop.set_exception_handler(lambda _, context: seen.append(str(context["exception"])))

        def fail() -> None:
            raise ValueError("no")

        entrance.enter(fail)
        entrance.enter(lambda: seen.append("in"))
        for _ in range(3):
            await asyncio.sleep(0)
        entrance.enter(lambda: seen.append("later"))
        await asyncio.sleep(0)
        return seen

    assert asyncio.run(main()) == ["no", "in", "later"]
