"""Spans of real requests, as a collector on a socket gets them."""

from __future__ import annotations

import gzip
import http.server
import json
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from server.bodies import chat, image, png
from server.live import Live, serve, user
from server.samples import data_url, picture

from sensorium.config import ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.errors import ConfigError
from sensorium.server.app import build_app

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    data = gzip.decompress(data)
                outer.take(self.path, data)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Not to stderr."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, path: str, data: bytes) -> None:
        assert path == "/v1/traces"
        for group in ExportTraceServiceRequest.FromString(data).resource_spans:
            self.resources.append({pair.key: pair.value.string_value for pair in group.resource.attributes})
            for scope in group.scope_spans:
                self.spans.extend(scope.spans)

    def names(self) -> list[str]:
        return sorted(span.name for span in self.spans)

    def one(self, name: str) -> Any:
        (found,) = [span for span in self.spans if span.name == name]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def ask(live: Live, body: object, **headers: str) -> int:
    data = json.dumps(body).encode()
    return live.request("POST", "/v1/chat/completions", data, {"content-type": "application/json", **headers})[0]


def test_a_request_with_a_picture_in_the_trace_of_its_caller(engine: EngineClient, collector: Collector):
    with serve(engine, otlp_traces_endpoint=collector.url, served_model_name="tiny") as live:
        body = png(picture(seed=77)) | {"max_tokens": 5, "ignore_eos": True}
        assert ask(live, body, traceparent=f"00-{TRACE}-{PARENT}-01", **{"x-request-id": "mine"}) == 200
        live.request("GET", "/health")
        live.request("GET", "/metrics")
    generated = ["decode", "generate", "prefill", "queue"]
    media = ["media.decode", "media.fetch", "media.preprocess"]
    assert collector.names() == sorted(["POST /v1/chat/completions", "prepare", *generated, *media])
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    root, prepare, generate = map(collector.one, ("POST /v1/chat/completions", "prepare", "generate"))
    assert root.parent_span_id.hex() == PARENT
    assert root.kind == root.SPAN_KIND_SERVER
    assert prepare.parent_span_id == generate.parent_span_id == root.span_id
    assert {collector.one(name).parent_span_id for name in media} == {prepare.span_id}
    assert {collector.one(name).parent_span_id for name in ("queue", "prefill", "decode")} == {generate.span_id}
    assert attributes(collector.one("media.decode")) == {"sensorium.part": "image"}
    facts = attributes(root)
    assert facts["http.route"] == "/v1/chat/completions"
    assert facts["http.response.status_code"] == 200
    assert facts["gen_ai.usage.output_tokens"] == 5
    assert facts["gen_ai.response.id"] == "chatcmpl-mine"
    assert collector.resources[0]["service.name"] == "sensorium"


def test_the_parts_lie_inside_the_whole_and_follow_each_other(engine: EngineClient, collector: Collector):
    with serve(engine, otlp_traces_endpoint=collector.url + "/v1/traces") as live:
        assert ask(live, png(picture(seed=78)) | {"n": 2, "max_tokens": 4, "ignore_eos": True, "stream": True}) == 200
    assert collector.names().count("decode") == 2
    by_id = {span.span_id: span for span in collector.spans}
    slack = 50_000_000  # arrival is noted here and in the engine, a moment apart
    for span in collector.spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if (parent := by_id.get(span.parent_span_id)) is not None:
            assert parent.start_time_unix_nano - slack <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano + slack
    order = ["media.fetch", "media.decode", "media.preprocess"]
    stops = [collector.one(name).end_time_unix_nano for name in order]
    assert stops == sorted(stops)
    assert {attributes(span)["sensorium.part"] for span in collector.spans if span.name == "decode"} == {"0", "1"}


def test_a_caller_may_decide_that_nothing_is_recorded(engine: EngineClient, collector: Collector):
    with serve(engine, otlp_traces_endpoint=collector.url) as live:
        assert ask(live, chat(), traceparent=f"00-{TRACE}-{PARENT}-00") == 200
        assert ask(live, chat(), traceparent="rubbish") == 200
    assert collector.names().count("POST /v1/chat/completions") == 1
    assert TRACE not in {span.trace_id.hex() for span in collector.spans}


def test_nothing_that_was_said_or_asked_for_leaves_in_spans_or_logs(
    engine: EngineClient, collector: Collector, caplog: pytest.LogCaptureFixture
):
    secret = "http://127.0.0.1:1/a.png?token=hunter2"
    key = {"authorization": "Bearer hunter3"}
    caplog.set_level(logging.DEBUG)
    with serve(engine, otlp_traces_endpoint=collector.url, api_keys=("hunter3",)) as live:
        assert ask(live, image(secret), **key) == 400
        assert ask(live, chat(messages=user("hunter2 is my password")), **key) == 200
        live.request("POST", "/v1/chat/completions?key=hunter2", b"{", {"authorization": "Bearer hunter4"})
        assert ask(live, image(data_url("image/png", b"hunter2")), **key) == 400
    spans = "".join(map(str, collector.spans))
    assert "hunter" not in spans
    assert "hunter" not in caplog.text
    refused = [attributes(span).get("error.type") for span in collector.spans if span.name.startswith("POST")]
    assert set(refused) == {"media_url_blocked", "invalid_media", "invalid_api_key", None}
    traces = {span.trace_id.hex() for span in collector.spans}
    logged = [line for line in caplog.messages if "trace_id=" in line]
    assert {line.partition("trace_id=")[2].split()[0] for line in logged} == traces


def test_without_the_extra_it_says_what_to_install(engine: EngineClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=r"pip install 'sensorium\[tracing\]'"):
        build_app(engine, ServerConfig(otlp_traces_endpoint="http://localhost:4318"))


@pytest.mark.parametrize("endpoint", ["grpc://localhost:4317", "localhost:4317", "http://"])
def test_endpoints_that_are_none(engine: EngineClient, endpoint: str):
    with pytest.raises(ConfigError, match="4318"):
        build_app(engine, ServerConfig(otlp_traces_endpoint=endpoint))
