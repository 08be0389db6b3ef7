"""What the API says about itself, counts and writes down; what it says when the engine is gone."""

from __future__ import annotations

import json
import logging
import re
import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from server.bodies import chat
from server.live import Live, eventually, serve, user
from starlette.routing import Route, WebSocketRoute

from sensorium.config import ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.engine.link import Supervision
from sensorium.errors import RequestError
from sensorium.server.app import build_app
from sensorium.server.body import decode
from sensorium.server.chat_schema import CHAT_REQUEST, UNSUPPORTED, ChatRequest
from sensorium.server.lift import Lifter
from sensorium.server.openapi import describe_api
from sensorium.server.page import page_routes
from sensorium.server.reference import reference_page
from sensorium.server.unsupported import ROUTES


def read(body: dict[str, Any]) -> ChatRequest:
    lifter = Lifter()
    lifter.feed(json.dumps(body).encode())
    return decode(lifter.finish(), CHAT_REQUEST, UNSUPPORTED)


# ---- description ----


def test_the_description_names_every_route_and_every_field():
    description = describe_api()
    never: Future[EngineClient] = Future()
    app = build_app(never, ServerConfig())
    routes = {route.path for route in app.routes if isinstance(route, Route)}
    absent = {path for _, path in ROUTES} - {route.path for route in app.routes if isinstance(route, WebSocketRoute)}
    routes -= {route.path for route in page_routes()} | {"/ping", "/openapi.json", "/docs", "/redoc"} | absent
    assert set(description["paths"]) == {path.replace("{name:path}", "{name}") for path in routes}
    fields = description["components"]["schemas"]["ChatRequest"]["properties"]
    assert set(fields) == {field.name for field in msgspec.structs.fields(ChatRequest)}
    assert fields["temperature"]["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}


def test_the_description_can_be_read_as_a_page(live: Live):
    status, headers, page = live.request("GET", "/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert live.request("GET", "/redoc")[2] == page
    text = page.decode()
    described = describe_api()
    for path in described["paths"]:
        assert f"{path}</code>" in text
    links, names = set(re.findall(r'href="#([\w.]+)"', text)), re.findall(r'<h3 id="([\w.]+)"', text)
    assert sorted(names) == sorted(described["components"]["schemas"])
    assert links <= set(names)
    for field in described["components"]["schemas"]["ChatRequest"]["properties"]:
        assert f"<code>{field}</code>" in text
    # No scripts, and nothing that HTML would read in the words of the description.
    assert "script-src" not in headers["content-security-policy"]
    assert "<script" not in text
    assert reference_page({**described, "info": {"title": "<b>", "version": "&"}}).count(b"&lt;b&gt; &amp;") == 2
    for sheet in re.findall(r'href="([a-z.]+css)"', text):
        assert live.request("GET", f"/{sheet}")[0] == 200


def test_the_description_has_no_loose_ends(live: Live):
    status, _, answer = live.request("GET", "/openapi.json")
    assert status == 200
    text = answer.decode()
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names
    assert names <= set(json.loads(text)["components"]["schemas"])


def test_fields_of_other_servers_are_named_as_unsupported():
    for name in set(UNSUPPORTED) - {field.name for field in msgspec.structs.fields(ChatRequest)}:
        with pytest.raises(RequestError, match=f"{name}: .* not supported") as refused:
            read(chat(**{name: 1}))
        assert (refused.value.code, refused.value.param) == ("unsupported", name)


def test_fields_that_ask_for_nothing_are_accepted():
    harmless = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "store": False}
    for name, value in harmless.items():
        assert getattr(read(chat(**{name: value})), name) is not None


def test_null_is_the_same_as_leaving_out():
    nulls = {field.name: None for field in msgspec.structs.fields(ChatRequest) if field.name != "messages"}
    assert read({**nulls, "messages": user("hi")}) == read({"messages": user("hi")})


# ---- log ----


@pytest.mark.parametrize("log_format", ["plain", "json"])
def test_one_line_per_request_without_its_content(
    engine: EngineClient, caplog: pytest.LogCaptureFixture, log_format: str
):
    with serve(engine, log_format=log_format) as live, caplog.at_level(logging.INFO, "sensorium.access"):
        live.post(chat(messages=user("my secret"), user="some\tone"))
        live.post(chat(messages=user("my secret"), user="someone", ignore_eos=True))
        live.request("GET", "/%1b%5b31m", None, {"x-request-id": "id-1"})
        live.request("GET", "/health")
    lines = [record.getMessage() for record in caplog.records if record.name == "sensorium.access"]
    wanted = [re.compile(rf'status"?[=:]{status}') for status in (400, 200, 404)]
    refused, answered, unknown = (next(line for line in lines if status.search(line)) for status in wanted)
    assert len(lines) == 3
    assert "secret" not in caplog.text
    assert "\x1b" not in unknown
    assert "id-1" in unknown
    assert "invalid_request" in refused
    if log_format == "json":
        facts = json.loads(answered)
        assert facts["user"] == "someone"
        assert facts["completion_tokens"] == 2
        assert facts["status"] == 200
        assert facts["id"] == f"chatcmpl-{facts['request_id']}"
    else:
        assert "user=someone" in answered
        assert "completion_tokens=2" in answered


# ---- when the engine is gone ----


def test_an_engine_that_ends_is_told_to_everybody(engine: EngineClient):
    long = chat(max_tokens=900, ignore_eos=True)
    answers: dict[str, tuple[int, bytes]] = {}
    with EngineClient(replace(engine.config, max_model_len=1024)) as mortal, serve(mortal) as live:

        def ask(name: str, **fields: Any) -> None:
            body = json.dumps({**long, **fields}).encode()
            status, _, answer = live.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answers[name] = status, answer

        threads = [
            threading.Thread(target=ask, args=("whole",)),
            threading.Thread(target=ask, args=("stream",), kwargs={"stream": True}),
        ]
        for thread in threads:
            thread.start()
        assert eventually(lambda: mortal.num_requests == 2)
        assert live.request("GET", "/health")[0] == 200
        mortal.close()
        for thread in threads:
            thread.join()
        assert live.request("GET", "/health")[2] == b'{"status":"failed"}'
        status, answer = live.post(chat())
    assert (status, answer["error"]["code"]) == (503, "engine_dead")
    assert answers["whole"][0] == 503
    assert json.loads(answers["whole"][1])["error"]["code"] == "engine_dead"
    status, streamed = answers["stream"]
    error, done = streamed.decode().split("\n\n")[-3:-1]
    assert status == 200
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert done == "data: [DONE]"


def test_an_engine_that_hangs_is_noticed(engine: EngineClient, live: Live, monkeypatch: pytest.MonkeyPatch):
    """Not healthy while there is work and no step ends; healthy again as soon as one does."""
    monkeypatch.setattr(engine, "supervision", Supervision(stall_s=0.05))
    go_on = threading.Event()
    step = engine.loaded.engine.step

    def hanging_step() -> Any:
        go_on.wait()
        return step()

    monkeypatch.setattr(engine.loaded.engine, "step", hanging_step)
    thread = threading.Thread(target=live.post, args=(chat(),))
    thread.start()
    assert eventually(lambda: live.request("GET", "/health")[2] == b'{"status":"stalled"}')
    go_on.set()
    thread.join()
    assert live.request("GET", "/health")[0] == 200
