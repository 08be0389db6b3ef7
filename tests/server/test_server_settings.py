"""Settings of the server that change what a client or an operator sees."""

from __future__ import annotations

import json
import logging
import shutil
import ssl
import subprocess
import threading
import urllib.request

import pytest
from server.live import serve, user

from sensorium.config import EngineConfig, ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.errors import ConfigError
from sensorium.server.app import build_app
from sensorium.server.run import bind, http_server

ASK = {"messages": user("hello"), "max_tokens": 2}


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ({}, lambda print_: print_.startswith("sensorium-") and print_.endswith("-cpu")),
        ({"fingerprint_mode": "hash"}, lambda print_: len(print_) == 16),
        ({"fingerprint_mode": "custom", "fingerprint_value": "mine"}, lambda print_: print_ == "mine"),
        ({"fingerprint_mode": "none"}, lambda print_: print_ is None),
    ],
)
def test_the_fingerprint_has_four_modes(engine, settings, check):
    with serve(engine, **settings) as live:
        status, answer = live.post(ASK)
        assert status == 200
        assert check(answer["system_fingerprint"])


def test_paths_without_a_key_are_those_named(engine):
    with serve(engine, api_keys=("k",), api_key_exempt=("health", "/openapi.json")) as live:
        statuses = [live.request("GET", path)[0] for path in ("/health", "/openapi.json", "/metrics", "/v1/models")]
    assert statuses == [200, 200, 401, 401]


def test_the_description_and_request_ids_may_be_left_out(engine):
    with serve(engine, disable_fastapi_docs=True, enable_request_id_headers=False) as live:
        for path in ("/openapi.json", "/docs", "/redoc"):
            assert live.request("GET", path)[0] == 404
        assert "x-request-id" not in live.request("GET", "/health")[1]


def test_metrics_without_the_names_of_vllm_and_with_other_buckets(engine):
    buckets = {"e2e_request_latency_seconds": [0.25, 64]}
    with serve(engine, metrics_compat=False, custom_histogram_buckets=buckets) as live:
        live.post(ASK)
        text = live.request("GET", "/metrics")[2].decode()
    assert "vllm:" not in text
    bounds = [line for line in text.splitlines() if line.startswith("sensorium:e2e_request_latency_seconds_bucket")]
    assert [line.partition('le="')[2].partition('"')[0] for line in bounds] == ["0.25", "64.0", "+Inf"]


@pytest.mark.parametrize("buckets", [{"nothing": [1]}, {"e2e_request_latency_seconds": [2, 1]}])
def test_wrong_buckets_end_the_start(engine, buckets):
    with pytest.raises(ConfigError, match="custom_histogram_buckets"):
        build_app(engine, ServerConfig(custom_histogram_buckets=buckets))


def test_behind_a_prefix_the_same_paths_are_open(engine):
    with serve(engine, root_path="/models", api_keys=("k",)) as live:
        assert live.request("GET", "/health")[0] == 200
        assert live.request("GET", "/v1/models")[0] == 401
        assert live.request("GET", "/v1/models", headers={"authorization": "Bearer k"})[0] == 200


def test_cross_origin_answers_carry_what_was_configured(engine):
    settings = {"allowed_origins": ("http://friend.test",), "allow_credentials": True, "allowed_methods": ("POST",)}
    ask = {"origin": "http://friend.test", "access-control-request-method": "POST"}
    with serve(engine, **settings) as live:
        headers = live.request("OPTIONS", "/v1/chat/completions", headers=ask)[1]
    assert headers["access-control-allow-methods"] == "POST"
    assert headers["access-control-allow-credentials"] == "true"


def test_a_listed_origin_may_use_every_method_that_the_server_has(engine):
    with serve(engine, allowed_origins=("http://friend.test",)) as live:
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/audio/voices"), ("DELETE", "/v1/audio/voices/ada")):
            ask = {"origin": "http://friend.test", "access-control-request-method": method}
            status, headers, _ = live.request("OPTIONS", path, headers=ask)
            assert status == 200
            assert headers["access-control-allow-origin"] == "http://friend.test"


def test_the_access_log_leaves_out_what_it_is_told_to(engine, caplog):
    caplog.set_level(logging.INFO, "sensorium.access")
    with serve(engine, disable_access_log_for_endpoints=("/version",)) as live:
        live.request("GET", "/version")
        live.request("GET", "/v1/models")
    paths = [record.getMessage() for record in caplog.records if record.name == "sensorium.access"]
    assert len(paths) == 1
    assert "path=/v1/models" in paths[0]


def test_refusals_leave_a_traceback_where_that_is_wanted(engine, caplog):
    with serve(engine, log_error_stack=True) as live:
        assert live.post({"messages": []})[0] == 400
    assert any(record.exc_info and "refused" in record.getMessage() for record in caplog.records)


def test_a_request_is_logged_with_its_parameters_and_without_its_words(any_model, caplog):
    caplog.set_level(logging.INFO, "sensorium.engine.client")
    config = EngineConfig(model=str(any_model), max_model_len=256, enable_log_requests=True)
    with EngineClient(config) as client, serve(client) as live:
        body = {"messages": user("a secret word"), "max_tokens": 3, "temperature": 0.5, "stop": ["hidden"]}
        assert live.post(body)[0] == 200
    line = next(text for record in caplog.records if "Received request" in (text := record.getMessage()))
    assert "temperature=0.5" in line
    assert "max_tokens=3" in line
    assert "media: none" in line
    assert "secret" not in line
    assert "hidden" not in line


def test_answers_are_logged_where_that_is_wanted(any_model, caplog):
    caplog.set_level(logging.INFO, "sensorium.engine")
    config = EngineConfig(
        model=str(any_model), max_model_len=256, enable_log_requests=True, enable_log_outputs=True, max_log_len=4
    )
    with EngineClient(config) as client, serve(client) as live:
        status, answer = live.post({"messages": user("a secret word"), "max_tokens": 9, "return_token_ids": True})
    assert status == 200
    [line] = [text for record in caplog.records if "Generated response" in (text := record.getMessage())]
    [choice] = answer["choices"]
    assert answer["id"] in line
    assert f"output: {choice['message']['content'][:4]!r}," in line
    assert f"output_token_ids: {choice['token_ids'][:4]}, finish_reason: {choice['finish_reason']}" in line
    assert "secret" not in caplog.text
    with pytest.raises(ConfigError, match="enable_log_requests"):
        EngineConfig(enable_log_outputs=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_serves_with_a_certificate(engine, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    config = ServerConfig(port=0, ssl_keyfile=key, ssl_certfile=certificate)
    listener = bind(config)
    server = http_server(build_app(engine, config), config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        url = f"https://localhost:{listener.getsockname()[1]}/v1/models"
        with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=str(certificate))) as reply:
            assert json.load(reply)["data"]
    finally:
        server.should_exit = True
        thread.join()


def test_any_model_name_passes_where_the_environment_says_so(engine, monkeypatch):
    monkeypatch.setenv("VLLM_SKIP_MODEL_NAME_VALIDATION", "1")
    with serve(engine) as live:
        assert live.post(ASK | {"model": "gpt-4o"})[0] == 200
