"""The application: routes inside, then whether there is room and who may come in, then ids, errors and logs."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sensorium.config import ServerConfig
from sensorium.server.chat import ChatCompletions
from sensorium.server.completions import Completions
from sensorium.server.dev import dev_routes
from sensorium.server.errors import HttpError
from sensorium.server.exchange import Desk, Exchanges
from sensorium.server.gate import Checked, Doorstep, Gate
from sensorium.server.guard import Guard
from sensorium.server.info import info_routes
from sensorium.server.live.clock import Clock
from sensorium.server.live.demo import demo_routes
from sensorium.server.live.demo_answers import Turns
from sensorium.server.live.duplex import duplex_routes
from sensorium.server.live.openai_door import openai_live_routes
from sensorium.server.live.service import LiveService
from sensorium.server.messages_api import messages_routes
from sensorium.server.metrics import Metrics
from sensorium.server.page import page_routes
from sensorium.server.pooling import pooling_routes
from sensorium.server.realtime.client_secrets import ClientSecrets
from sensorium.server.realtime.door import realtime_routes
from sensorium.server.responses import responses_routes
from sensorium.server.seats import Seats
from sensorium.server.served import Served
from sensorium.server.speech.door import speech_routes
from sensorium.server.speech.voice_doors import voice_routes
from sensorium.server.speech.voices import Voices
from sensorium.server.tokenize import tokenize_routes
from sensorium.server.tracing import Tracer
from sensorium.server.transcriptions import transcription_routes
from sensorium.server.unsupported import unsupported_routes
from sensorium.vad import detectors

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient


def build_app(
    engine: EngineClient | Future[EngineClient], config: ServerConfig, clock: Clock | None = None
) -> Starlette:
    """The ASGI application for an engine, or for one that is still loading. clock: of live and realtime sessions."""
    served = Served(engine if isinstance(engine, Future) else _ready(engine), config)

    def current() -> tuple[str, EngineClient] | None:
        client = served.loaded
        return (served.name_of(client), client) if client is not None else None

    tracer = Tracer(config.otlp_traces_endpoint) if config.otlp_traces_endpoint else None
    metrics = Metrics(current, compat=config.metrics_compat, buckets=config.custom_histogram_buckets)
    page = page_routes()
    voices = Voices(config.voice_folder, config.max_voices, served.created)
    live = LiveService(served, config, metrics.live, voices, Seats(config), clock)
    secrets = ClientSecrets(live.clock)
    chat = Route("/v1/chat/completions", ChatCompletions(served, config, metrics, voices), methods=["POST"])
    completions = Route("/v1/completions", Completions(served, config, metrics), methods=["POST"])
    doors = [
        chat,
        completions,
        *responses_routes(served, config, metrics),
        *messages_routes(served, config, metrics),
        *pooling_routes(served, config, metrics),
        *transcription_routes(served, config, metrics),
        *speech_routes(served, config, metrics, voices),
    ]
    routes = [
        *doors,
        *realtime_routes(served, config, metrics, voices, live, secrets),
        *voice_routes(served, voices),
        *duplex_routes(served, live),
        *openai_live_routes(served, live),
        *demo_routes(served, live, Turns(served, config, metrics, voices), detectors(config.vad)),
        *tokenize_routes(served, config),
        *info_routes(served, metrics, described=not config.disable_fastapi_docs),
        *dev_routes(served, config),
        *unsupported_routes(),
        *page,
    ]
    labels = {route.path: route.path for route in routes}
    desk = Desk(metrics, labels, config, tracer)
    guard = Guard(config, [*open_paths(config), *(route.path for route in page)], secrets.key_of)
    gate = Gate(served, [route.path for route in doors], config.root_path)
    middleware = [Middleware(Exchanges, desk=desk), Middleware(Checked, checks=[guard.check, gate.check])]
    if config.allowed_origins:
        middleware.insert(0, _cors(config))
    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _unrouted})
    app.state.served = served
    app.state.live = live
    app.state.tracer = tracer
    app.state.doorstep = Doorstep(gate, guard, desk)
    app.router.redirect_slashes = False
    return app


def _cors(config: ServerConfig) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=list(config.allowed_origins),
        allow_methods=list(config.allowed_methods),
        allow_headers=list(config.allowed_headers),
        allow_credentials=config.allow_credentials,
    )


def open_paths(config: ServerConfig) -> list[str]:
    """The paths that need no key, besides those of the page."""
    return ["/" + path.strip("/") for path in config.api_key_exempt]


async def _unrouted(request: Request, error: Exception) -> Response:
    """The router's own refusals: no such path, or not with that method."""
    if not isinstance(error, HTTPException) or error.status_code != 405:
        raise HttpError(404, "not_found", f"there is no {request.url.path[:200]}")
    allowed = (error.headers or {}).get("Allow", "")
    raise HttpError(405, "method_not_allowed", f"{request.method} is not possible here", headers={"allow": allowed})


def _ready(client: EngineClient) -> Future[EngineClient]:
    future: Future[EngineClient] = Future()
    future.set_result(client)
    return future
