"""Sockets for the client of MiniCPM-o's published demo; here WS /ws/duplex/{id}, its full duplex."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import msgspec
from starlette.routing import WebSocketRoute
from starlette.types import Receive, Scope, Send

from sensorium.errors import RequestError, SensoriumError
from sensorium.server.live import demo_chat, demo_half_duplex
from sensorium.server.live import demo_talk as demo
from sensorium.server.live.demo_answers import Turns
from sensorium.server.live.holding import hold
from sensorium.server.live.service import LiveService
from sensorium.server.live.sockets import Socket, accepted, answer_first
from sensorium.server.served import Served
from sensorium.vad import Detector

PATH = "/ws/duplex/{id}"


def demo_routes(
    served: Served, service: LiveService, turns: Turns, detector: Callable[[], Detector]
) -> list[WebSocketRoute]:
    """detector: hears where a turn ends; a new one for each conversation."""
    half_duplex = demo_half_duplex.HalfDuplexDoor(turns, service.clock, service.seats, detector)
    return [
        WebSocketRoute(PATH, DemoDoor(served, service)),
        WebSocketRoute(demo_half_duplex.PATH, half_duplex),
        WebSocketRoute(demo_chat.PATH, demo_chat.ChatDoor(turns, service.clock, service.seats)),
    ]


class DemoDoor:
    """The endpoint, as raw ASGI. The id that a client makes up for itself is its own affair."""

    def __init__(self, served: Served, service: LiveService) -> None:
        self._served = served
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._served.client().live("")
        socket, key = await accepted(scope, receive, send, self._service.clock, demo.MAX_MESSAGE)
        converse = partial(self._converse, socket, key)
        # There the queue comes before `prepare`; here what is prepared waits, so that nobody waits in vain.
        greeting = '{"type":"queue_done"}'
        await answer_first(socket, self._service.seats, key, converse, "no prepare", greeting)

    async def _converse(self, socket: Socket, key: str, first: str | bytes) -> None:
        try:
            said = demo.read_said(first)
            if not isinstance(said, demo.Prepare):
                raise RequestError("the first message is `prepare`", param="type")
            session = await self._service.open(demo.options_of(said, key))
        except SensoriumError as error:
            told = msgspec.json.encode({"type": "error", "error": error.message[:1000]}).decode()
            await socket.refuse(error, told)
            return
        await hold(demo.DemoTalk(session, said, self._service.clock), self._service, socket)
