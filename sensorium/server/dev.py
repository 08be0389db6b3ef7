"""GET /load, and the routes for developers (`dev_mode`), which anyone with a key could otherwise misuse."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sensorium import __version__
from sensorium.config import ServerConfig
from sensorium.engine.sleep import check_sleep, check_tags
from sensorium.errors import EngineDeadError
from sensorium.server.served import Served

SECRET = ("api_keys",)


def dev_routes(served: Served, config: ServerConfig) -> list[Route]:
    async def load(request: Request) -> Response:
        return _json({"server_load": served.client().num_requests})

    async def server_info(request: Request) -> Response:
        client = served.client()
        return _json(
            {
                "version": __version__,
                "python": sys.version.split()[0],
                "model": client.model_name,
                "max_model_len": client.max_model_len,
                "modalities": list(client.modalities),
                "engine_config": _plain(client.config),
                "server_config": {name: value for name, value in _plain(config).items() if name not in SECRET},
            }
        )

    async def reset_prefix_cache(request: Request) -> Response:
        served.client().reset_prefix_cache()
        return _json({"success": True})

    async def reset_mm_cache(request: Request) -> Response:
        served.client().reset_mm_cache()
        return _json({"success": True})

    async def reset_encoder_cache(request: Request) -> Response:
        served.client().reset_encoder_cache()
        return _json({"success": True})

    async def is_sleeping(request: Request) -> Response:
        return _json({"is_sleeping": served.client().state == "sleeping"})

    async def sleep(request: Request) -> Response:
        client, query = served.client(), request.query_params
        level, mode = query.get("level", "1"), query.get("mode", "abort")
        check_sleep(int(level) if level.isdecimal() else level, mode, client.config)
        await asyncio.to_thread(client.sleep, wait=mode == "wait")
        return _json({"status": "sleeping", "level": int(level)})

    async def wake_up(request: Request) -> Response:
        client = served.client()
        check_tags(request.query_params.getlist("tags"))
        await asyncio.to_thread(client.wake)
        if not client.is_alive:
            raise EngineDeadError(client.reason)
        return _json({"status": "awake"})

    routes = [Route("/load", load)]
    if config.dev_mode:
        routes += [Route("/server_info", server_info), Route("/is_sleeping", is_sleeping)]
        routes += [
            Route("/reset_prefix_cache", reset_prefix_cache, methods=["POST"]),
            Route("/reset_mm_cache", reset_mm_cache, methods=["POST"]),
            Route("/reset_encoder_cache", reset_encoder_cache, methods=["POST"]),
            Route("/sleep", sleep, methods=["POST"]),
            Route("/wake_up", wake_up, methods=["POST"]),
        ]
    return routes


def _plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON takes it."""
    return msgspec.to_builtins(config, enc_hook=str)


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), 200, {"cache-control": "no-store"}, "application/json")
