"""WS /v1/realtime: who gets a session, which of its two languages a connection speaks, and when it ends."""

from __future__ import annotations

import asyncio
import time
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
from sensorium.server.live.clock import Clock
from sensorium.server.metrics import Metrics
from sensorium.server.realtime.answers import Answering
from sensorium.server.realtime.beta import HEADER, SUBPROTOCOL, to_beta
from sensorium.server.realtime.client_secrets import SESSION_S, ClientSecrets, fresh_session, secret_routes
from sensorium.server.realtime.connection import Connection
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
    "mode": "the protocol of the duplex demo is at /ws/duplex/{id}",
}
"""What other servers take in this address, and where to find it."""
CLOSE_EXPIRED, CLOSE_FULL = 1001, 1013
BYTES_PER_S = 2 * 16_000
"""Of 16-bit sound at 16 kHz: what max_audio_filesize_mb means in seconds."""


def realtime_routes(
    served: Served, config: ServerConfig, metrics: Metrics, voices: Voices, clock: Clock, secrets: ClientSecrets
) -> list[Route | WebSocketRoute]:
    door = Realtime(served, config, metrics, voices, clock, secrets)
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
        clock: Clock,
        secrets: ClientSecrets,
    ) -> None:
        self._served = served
        self._clock = clock
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
        session = self._session(scope, query)
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
        connection = Connection(session, answering, transcriber, tell, most_s, self._clock, self._detector)
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
