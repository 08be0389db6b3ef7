"""WS /v1/duplex: our own protocol of full-duplex sessions; docs/duplex-protocol.md describes it."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from sensorium.errors import RequestError, SensoriumError
from sensorium.server.errors import HttpError, describe
from sensorium.server.live import duplex_wire as wire
from sensorium.server.live.duplex_talk import Talk
from sensorium.server.live.outbox import SlowReaderError
from sensorium.server.live.service import LiveService
from sensorium.server.live.sockets import NORMAL, POLICY, HangUpError, Socket, accepted, answer_first, both_ways
from sensorium.server.served import Served

PATH, SUBPROTOCOL = "/v1/duplex", "sensorium.duplex.v1"


def duplex_routes(served: Served, service: LiveService) -> list[Route | WebSocketRoute]:
    return [WebSocketRoute(PATH, DuplexDoor(served, service)), Route(PATH, _upgrade, methods=["GET"])]


async def _upgrade(request: Request) -> Response:
    raise HttpError(426, "upgrade_required", f"{PATH} is a WebSocket", headers={"upgrade": "websocket"})


class _Held:
    """A talk, and which socket has it: another one that takes it up makes `replaced` true for the first."""

    def __init__(self, talk: Talk) -> None:
        self.talk = talk
        self.lock = asyncio.Lock()
        self.replaced = asyncio.Event()


class DuplexDoor:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, service: LiveService) -> None:
        self._served = served
        self._service = service
        self._held: dict[str, _Held] = {}
        self._following: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        self._served.check_name(query.get("model", [None])[0])
        self._served.client().live("")
        socket, key = await accepted(scope, receive, send, self._service.clock, wire.MAX_MESSAGE, SUBPROTOCOL)
        converse = partial(self._converse, socket, key, query.get("voice", [None])[0])
        await answer_first(socket, self._service.seats, key, converse, "no start")

    async def _converse(self, socket: Socket, key: str, voice: str | None, first: str | bytes) -> None:
        try:
            said = wire.read_said(first) if isinstance(first, str) else None
            if isinstance(said, wire.Start):
                held, greeting = await self._start(said, key, voice), None
            elif isinstance(said, wire.Resume) and said.session is not None:
                held, greeting = self._take_up(said, key), said
            else:
                raise RequestError("the first message is `start`, or `resume` with a session", param="type")
        except SensoriumError as error:
            await socket.refuse(error, _refusal(error))
            return
        self._service.num_sockets += 1
        try:
            await self._hold(held, greeting, socket)
        finally:
            self._service.num_sockets -= 1

    async def _hold(self, held: _Held, greeting: wire.Resume | None, socket: Socket) -> None:
        """Have the talk, until it ends, the client goes, or another socket takes it."""
        before, held.replaced = held.replaced, asyncio.Event()
        before.set()
        replaced = held.replaced
        async with held.lock:
            if greeting is not None:
                token = self._service.token(held.talk.session)
                await socket.write(held.talk.take_up(greeting, token))
            ending = await both_ways(held.talk, socket, replaced)
        if replaced.is_set():
            await socket.write(msgspec.json.encode({"type": "bye", "reason": "replaced", "usage": None}).decode())
            await socket.close(NORMAL)
        else:
            await self._leave(held.talk, socket, ending)

    # ---- beginnings ------------------------------------------------------------------------------------------------

    async def _start(self, start: wire.Start, key: str, voice: str | None) -> _Held:
        self._served.check_name(start.model)
        session = await self._service.open(wire.options_of(start, voice, key))
        talk = Talk(session, start, self._served.name, self._service.clock)
        held = self._held[session.id] = _Held(talk)
        following = asyncio.create_task(self._follow(held))
        self._following.add(following)
        following.add_done_callback(self._following.discard)
        return held

    async def _follow(self, held: _Held) -> None:
        session = held.talk.session
        try:
            await held.talk.follow(self._service.token(session))
        finally:
            del self._held[session.id]

    def _take_up(self, resume: wire.Resume, key: str) -> _Held:
        session = self._service.take_up(resume.session or "", resume.resume_token or "", key)
        return self._held[session.id]

    # ---- endings ---------------------------------------------------------------------------------------------------

    async def _leave(self, talk: Talk, socket: Socket, ending: BaseException | None) -> None:
        session = talk.session
        if ending is None:
            await socket.close(talk.close_code)
            return
        if session.opened_s is None or (isinstance(ending, HangUpError) and ending.code == POLICY):
            self._service.leave(session)
        else:
            session.detach()
        if isinstance(ending, SlowReaderError):
            await socket.close(POLICY, "slow_consumer")
            return
        with contextlib.suppress(OSError):
            raise ending


def _refusal(error: SensoriumError) -> str:
    _, body, headers = describe(error)
    detail = body.error
    told: dict[str, Any] = {"code": detail.code, "message": detail.message, "param": detail.param, "fatal": True}
    if "retry-after" in headers:
        told["retry_after_s"] = int(headers["retry-after"])
    return msgspec.json.encode({"type": "error", "seq": 0, **told}).decode()
