"""WS /v1/live/sessions: full duplex in OpenAI's Live events."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from sensorium.errors import RequestError, SensoriumError
from sensorium.server.errors import HttpError, describe
from sensorium.server.live import openai_wire as wire
from sensorium.server.live.holding import hold
from sensorium.server.live.openai_talk import OpenAITalk
from sensorium.server.live.service import LiveService
from sensorium.server.live.sockets import Socket, accepted, answer_first
from sensorium.server.served import Served

PATH = "/v1/live/sessions"


def openai_live_routes(served: Served, service: LiveService) -> list[Route | WebSocketRoute]:
    door = OpenAIDoor(served, service)
    return [WebSocketRoute(PATH, door), Route(PATH, _upgrade, methods=["GET"])]


async def _upgrade(request: Request) -> Response:
    raise HttpError(426, "upgrade_required", f"{PATH} is a WebSocket", headers={"upgrade": "websocket"})


class OpenAIDoor:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, service: LiveService) -> None:
        self._served = served
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._served.client().live("")
        socket, key = await accepted(scope, receive, send, self._service.clock, wire.MAX_MESSAGE, "realtime")
        converse = partial(self._converse, socket, key)
        await answer_first(socket, self._service.seats, key, converse, "no session.start")

    async def _converse(self, socket: Socket, key: str, first: str | bytes) -> None:
        try:
            said = wire.read_said(first)
            if not isinstance(said, wire.StartSession):
                raise RequestError("the first message is session.start", param="type")
            self._served.check_name(said.session.model)
            wire.rate_of(said.session)
            session = await self._service.open(wire.options_of(said.session, key))
        except SensoriumError as error:
            await socket.refuse(error, _refusal(error, wire.ident_of(first)))
            return
        await hold(OpenAITalk(session, said, self._served.name, self._service.clock), self._service, socket)


def _refusal(error: SensoriumError, ident: str | None) -> str:
    _, body, _ = describe(error)
    reason = msgspec.to_builtins(body.error) | {"client_event_id": ident}
    told = {"type": "error", "event_id": "event_0", "error": reason, "client_event_id": ident}
    return msgspec.json.encode(told).decode()
