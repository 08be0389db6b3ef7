"""WS /v1/realtime: who gets a session, which of its two languages a connection speaks, and when it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import OverloadedError, RequestError, UnsupportedError
from sensorium.server.errors import HttpError
from sensorium.server.generation import Origin
from sensorium.server.guard import presented
from sensorium.server.live.clock import within
from sensorium.server.live.demo_realtime import RealtimeDemoDoor
from sensorium.server.live.service import LiveService
from sensorium.server.live.sockets import FULL, GOING, POLICY, HangUpError
from sensorium.server.metrics import Metrics
from sensorium.server.realtime.answers import Answering
from sensorium.server.realtime.beta import HEADER, SUBPROTOCOL, to_beta
from sensorium.server.realtime.client_secrets import SESSION_S, ClientSecrets, fresh_session, secret_routes
from sensorium.server.realtime.connection import Connection
from sensorium.server.realtime.line import Line
from sensorium.server.realtime.schema import read_object, refusal
from sensorium.server.realtime.session import Session
from sensorium.server.realtime.transcripts import Transcriber
from sensorium.server.realtime.vllm import TranscriptionDialect
from sensorium.server.served import Served
from sensorium.server.speech.voices import Voices, owner_of
from sensorium.vad import detectors

Speaker = Connection | TranscriptionDialect
PATH = "/v1/realtime"
INTENTS = ("conversation", "transcription")
ELSEWHERE = {
    "call_id": "there are no calls here, as WebRTC is not served",
    "duplex": "full duplex is at /v1/live/sessions and /v1/duplex",
}
"""What other servers take in this address, and where to find it."""
FAREWELL_S = 1.0
"""For a client to take what it is told last."""
RETRY_S = 10.0
"""After which one who found no place may try again."""
BYTES_PER_S = 2 * 16_000
"""Of 16-bit sound at 16 kHz: what max_audio_filesize_mb means in seconds."""


def realtime_routes(
    served: Served, config: ServerConfig, metrics: Metrics, voices: Voices, live: LiveService, secrets: ClientSecrets
) -> list[Route | WebSocketRoute]:
    door = Realtime(served, config, metrics, voices, live, secrets)
    socket, upgrade = WebSocketRoute(PATH, door), Route(PATH, _upgrade, methods=["GET"])
    return [socket, upgrade, *secret_routes(served, config, voices, secrets)]


async def _upgrade(request: Request) -> Response:
    raise HttpError(426, "upgrade_required", f"{PATH} is a WebSocket", headers={"upgrade": "websocket"})


class Realtime:
    """The endpoint, as raw ASGI."""

    def __init__(
        self,
        served: Served,
        config: ServerConfig,
        metrics: Metrics,
        voices: Voices,
        live: LiveService,
        secrets: ClientSecrets,
    ) -> None:
        self._served = served
        self._demo = RealtimeDemoDoor(served, live)
        self._clock, self._seats = live.clock, live.seats
        self._detector = detectors(config.vad)
        self._secrets = secrets
        self._voices = voices
        self._config = config
        self._metrics = metrics
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        model = query.get("model", [None])[0]
        self._served.check_name(model)
        if "mode" in query:
            return await self._demo(query["mode"][0], scope, receive, send)
        session = self._session(scope, query)
        await receive()
        offered = scope["subprotocols"]
        await send({"type": "websocket.accept", "subprotocol": "realtime" if "realtime" in offered else None})
        beta = SUBPROTOCOL in offered or (b"openai-beta", HEADER) in scope["headers"]
        line = Line(receive, send, self._clock)

        async def tell(event: dict[str, Any]) -> None:
            for one in to_beta(event) if beta else (event,):
                await line.write(msgspec.json.encode(one).decode())

        origin = Origin.of(scope, "sess-")
        transcriber = Transcriber(self._served.client, self._metrics, origin)
        owner = owner_of(scope["state"])
        answering = Answering(self._served.client, self._config, self._metrics, origin, self._voices, owner)
        most_s = (self._config.max_audio_filesize_mb << 20) / BYTES_PER_S
        connection = Connection(session, answering, transcriber, tell, most_s, self._clock, self._detector)
        key = scope["state"].get("key", "")
        try:
            self._sit_down(key)
        except OverloadedError as full:
            await connection.tell_error(full)
            await line.close(FULL, f"{full.code}; try again in {full.retry_after_s:g} s")
            return None
        try:
            dialect = TranscriptionDialect(self._served.check_name, transcriber, tell, most_s)
            await self._converse(connection, dialect, line)
        finally:
            self._open -= 1
            self._metrics.realtime_sessions = self._open
            self._seats.give_back(key)
            await connection.close()

    def _session(self, scope: Scope, query: Mapping[str, list[str]]) -> Session:
        """As it begins. Raises UnsupportedError for what an address may ask for elsewhere."""
        for name, instead in ELSEWHERE.items():
            if name in query:
                raise UnsupportedError(f"{name}: {instead}", param=name)
        intent = query.get("intent", ["conversation"])[0]
        if intent not in INTENTS:
            raise RequestError(f"intent: must be one of {', '.join(INTENTS)}", param="intent")
        session = fresh_session(self._served, self._voices)
        secret = self._secrets.find(presented(scope))
        if secret is not None:
            session = session.changed(secret.session)
        return replace(session, kind="transcription") if intent == "transcription" else session

    def _sit_down(self, key: str) -> None:
        """Take a place. Raises OverloadedError where there is none, or none for this key."""
        most = self._config.max_realtime_sessions
        if self._open >= most:
            reason = f"all {most} realtime sessions are taken; try again in {RETRY_S:g} s"
            full = OverloadedError(reason, reason="sessions", retry_after_s=RETRY_S)
            full.code = "session_limit_reached"
            raise full
        self._seats.take(key)
        self._open += 1
        self._metrics.realtime_sessions = self._open

    async def _converse(self, connection: Connection, dialect: TranscriptionDialect, line: Line) -> None:
        """Until the client goes, breaks the rules, or has had its time."""
        end_s = self._clock.now() + SESSION_S
        reading = asyncio.create_task(_read(connection, dialect, line))
        watching = asyncio.create_task(line.watch(end_s))
        try:
            await asyncio.wait((reading, watching), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reading, watching):
                task.cancel()
            await asyncio.wait((reading, watching))
        if not watching.cancelled():
            await self._dismiss(connection, line, watching.result())
            return
        await connection.close()
        try:
            reading.result()
        except asyncio.TimeoutError:
            await line.close(POLICY, "no message")
        except HangUpError as error:
            if error.code is not None:
                await line.close(error.code)

    async def _dismiss(self, connection: Connection, line: Line, why: str) -> None:
        await connection.close()
        if why == "expired":
            expired = refusal("session_expired", "this session has lasted for its hour; connect again")
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._clock, FAREWELL_S, connection.tell_error(expired))
            await line.close(GOING)
        else:
            await line.close(POLICY, why)


async def _read(connection: Connection, dialect: TranscriptionDialect, line: Line) -> None:
    """Raises HangUpError, and asyncio.TimeoutError for a client that says nothing at first."""
    await connection.open()
    data: str | bytes = await line.first()
    speaker: Speaker | None = None
    while True:
        if speaker is None:
            speaker = _first(data, connection, dialect)
        if not await (speaker or connection).take(data):
            line.wrong()
        data = await line.read()


def _first(data: str | bytes, connection: Connection, dialect: TranscriptionDialect) -> Speaker | None:
    """Who speaks the language of the first session.update; None while there was none."""
    event = read_object(data)
    if event.get("type") != "session.update":
        return None
    return dialect if "model" in event and "session" not in event else connection
