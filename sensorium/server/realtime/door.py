"""WS /v1/realtime: who gets a session, which of its two languages a connection speaks, and when it ends."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import OverloadedError
from sensorium.server.errors import HttpError
from sensorium.server.generation import Origin
from sensorium.server.metrics import Metrics
from sensorium.server.realtime.answers import Answering
from sensorium.server.realtime.beta import HEADER, SUBPROTOCOL, to_beta
from sensorium.server.realtime.connection import Connection
from sensorium.server.realtime.conversation import made_id, refusal
from sensorium.server.realtime.schema import read_object
from sensorium.server.realtime.session import Answers, Session
from sensorium.server.realtime.transcripts import Transcriber
from sensorium.server.realtime.vllm import TranscriptionDialect
from sensorium.server.served import Served
from sensorium.server.speech.voices import Voices, owner_of

Speaker = Connection | TranscriptionDialect
PATH = "/v1/realtime"
SESSION_S = 3600.0
"""How long a session may last."""
CLOSE_EXPIRED, CLOSE_FULL = 1001, 1013
BYTES_PER_S = 2 * 16_000
"""Of 16-bit sound at 16 kHz: what max_audio_filesize_mb means in seconds."""


def realtime_routes(
    served: Served, config: ServerConfig, metrics: Metrics, voices: Voices
) -> list[Route | WebSocketRoute]:
    return [WebSocketRoute(PATH, Realtime(served, config, metrics, voices)), Route(PATH, _upgrade, methods=["GET"])]


async def _upgrade(request: Request) -> Response:
    raise HttpError(426, "upgrade_required", f"{PATH} is a WebSocket", headers={"upgrade": "websocket"})


class Realtime:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics, voices: Voices) -> None:
        self._served = served
        self._voices = voices
        self._config = config
        self._metrics = metrics
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = self._served.client()
        query = parse_qs(scope["query_string"].decode("latin-1"))
        model = query.get("model", [None])[0]
        self._served.check_name(model)
        await receive()
        offered = scope["subprotocols"]
        await send({"type": "websocket.accept", "subprotocol": "realtime" if "realtime" in offered else None})
        beta = SUBPROTOCOL in offered or (b"openai-beta", HEADER) in scope["headers"]

        async def tell(event: dict[str, Any]) -> None:
            for one in to_beta(event) if beta else (event,):
                await send({"type": "websocket.send", "text": msgspec.json.encode(one).decode()})

        origin = Origin.of(scope, "sess-")
        transcriber = Transcriber(self._served.client, self._metrics, origin)
        owner = owner_of(scope["state"])
        answering = Answering(self._served.client, self._config, self._metrics, origin, self._voices, owner)
        most_s = (self._config.max_audio_filesize_mb << 20) / BYTES_PER_S
        speaks = client.can_sound and self._voices.has_default(client)
        answers = Answers(can_speak=client.can_sound, speaks=speaks)
        session = Session(made_id("sess"), self._served.name, int(time.time() + SESSION_S), answers=answers)
        connection = Connection(session, answering, transcriber, tell, most_s)
        if self._open >= self._config.max_realtime_sessions:
            full = OverloadedError(f"all {self._config.max_realtime_sessions} realtime sessions are taken")
            full.code = "session_limit_reached"
            await connection.tell_error(full)
            await send({"type": "websocket.close", "code": CLOSE_FULL})
            return
        self._open += 1
        self._metrics.realtime_sessions = self._open
        try:
            dialect = TranscriptionDialect(self._served.check_name, transcriber, tell, most_s)
            await _converse(connection, dialect, receive, send)
        finally:
            self._open -= 1
            self._metrics.realtime_sessions = self._open
            await connection.close()


async def _converse(connection: Connection, dialect: TranscriptionDialect, receive: Receive, send: Send) -> None:
    """Until the client goes, or the session has lasted long enough."""
    end = time.monotonic() + SESSION_S
    await connection.open()
    speaker: Speaker | None = None
    while True:
        try:
            message = await asyncio.wait_for(receive(), end - time.monotonic())
        except asyncio.TimeoutError:
            expired = refusal("session_expired", "this session has lasted for its hour; connect again")
            await connection.tell_error(expired)
            await send({"type": "websocket.close", "code": CLOSE_EXPIRED})
            return
        if message["type"] != "websocket.receive":
            return
        data = message.get("text") or message.get("bytes") or ""
        if speaker is None:
            speaker = _first(data, connection, dialect)
        await (speaker or connection).take(data)


def _first(data: str | bytes, connection: Connection, dialect: TranscriptionDialect) -> Speaker | None:
    """Who speaks the language of the first session.update; None while there was none."""
    event = read_object(data)
    if event.get("type") != "session.update":
        return None
    return dialect if "model" in event and "session" not in event else connection
