"""The small routes: models, health, version, metrics, and the description of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sensorium import __version__
from sensorium.server.metrics import Metrics
from sensorium.server.openapi import describe_api
from sensorium.server.reference import HEADERS as REFERENCE_HEADERS
from sensorium.server.reference import reference_page
from sensorium.server.schema import ModelCard, ModelList, ModelPermission
from sensorium.server.served import Served

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient


def info_routes(served: Served, metrics: Metrics, *, described: bool = True) -> list[Route]:
    """described: whether /openapi.json and its pages are there."""
    api = describe_api()
    description, page = msgspec.json.encode(api), reference_page(api)

    def card(name: str) -> ModelCard:
        client = served.client()
        return ModelCard(
            id=name,
            root=client.model_name,
            created=served.created,
            max_model_len=client.max_model_len,
            modalities=["text", *client.modalities],
            capabilities=_capabilities(client),
            permission=[ModelPermission(id=f"modelperm-{name}", created=served.created)],
        )

    async def list_models(request: Request) -> Response:
        return _json(ModelList([card(name) for name in served.names]))

    async def retrieve_model(request: Request) -> Response:
        name = request.path_params["name"]
        served.check_name(name)
        return _json(card(name))

    async def health(request: Request) -> Response:
        state = served.state()
        return _json({"status": state}, 200 if state in ("ok", "sleeping") else 503)

    async def version(request: Request) -> Response:
        return _json({"version": __version__})

    async def scrape(request: Request) -> Response:
        return Response(await metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def openapi(request: Request) -> Response:
        return Response(description, media_type="application/json")

    async def reference(request: Request) -> Response:
        return Response(page, headers=REFERENCE_HEADERS, media_type="text/html")

    routes = [
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", retrieve_model),
        Route("/health", health),
        Route("/ping", health, methods=["GET", "POST"]),
        Route("/version", version),
        Route("/metrics", scrape),
    ]
    pages = [Route("/openapi.json", openapi), Route("/docs", reference), Route("/redoc", reference)]
    return [*routes, *pages] if described else routes


def _capabilities(client: EngineClient) -> list[str]:
    able = {"speech": client.can_sound, "cloning": client.can_clone, "duplex": client.holds_live}
    return [name for name, can in able.items() if can]


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, {"cache-control": "no-store"}, "application/json")
