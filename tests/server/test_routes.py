"""The rules that hold on every route, read from the application's own table: keys, sizes, and who is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from server.bodies import chat
from server.live import Live, serve
from starlette.routing import Route

from sensorium.config import ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.server.app import build_app
from sensorium.server.page import page_routes
from sensorium.server.unsupported import ROUTES

OPEN = {"/health", "/ping", "/version", "/metrics"}


@pytest.fixture(scope="module")
def locked(engine: EngineClient) -> Iterator[Live]:
    with serve(engine, api_keys=("secret",), max_body_bytes=1000) as server:
        yield server


@pytest.fixture(scope="module")
def routes(engine: EngineClient) -> list[Route]:
    return [route for route in build_app(engine, ServerConfig()).routes if isinstance(route, Route)]


def test_all_but_the_open_routes_want_the_key(locked: Live, routes: list[Route]):
    page = {route.path for route in page_routes()}
    for route in routes:
        path = route.path.split("{")[0]
        for method in (route.methods or {"POST"}) - {"HEAD"}:
            status, _, answer = locked.request(method, path, b"{}" if method == "POST" else None)
            if path in OPEN | page:
                assert status != 401, (method, path)
            else:
                assert status == 401, (method, path)
                assert json.loads(answer)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_what_is_not_there_names_itself(live: Live, method: str, path: str):
    status, _, answer = live.request(method, path, b"{}" if method == "POST" else None)
    assert status == 501
    error = json.loads(answer)["error"]
    assert error["code"] == "not_implemented"
    assert error["message"].startswith(f"{path} is not implemented")


def test_bodies_of_any_size_are_taken_where_that_is_wanted(engine: EngineClient):
    with serve(engine, max_body_bytes=0) as server:
        assert server.post(chat())[0] == 200


def test_large_bodies_are_refused_on_every_route_that_takes_one(locked: Live, routes: list[Route]):
    headers = {"authorization": "Bearer secret", "content-type": "application/json"}
    taking = [route.path for route in routes if "POST" in (route.methods or ()) and ("POST", route.path) not in ROUTES]
    for path in set(taking) - {"/ping"}:
        status, _, answer = locked.request("POST", path, b'{"' + b"x" * 2000 + b'": 1}', headers)
        assert status in (413, 404), (path, answer)
        if status == 413:
            assert json.loads(answer)["error"]
