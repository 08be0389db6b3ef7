"""HTTP below the API: keys, hosts, origins, methods, heads and bodies as bytes on a socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import Future

import openai
import pytest
from server.bodies import chat
from server.live import Live, eventually, serve, user
from starlette.routing import Route

from sensorium.config import ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.server.app import build_app, open_paths
from sensorium.server.page import page_routes

JSON = {"content-type": "application/json"}
BODY = json.dumps(chat()).encode()
OPEN = {*open_paths(ServerConfig()), *(route.path for route in page_routes())}


@pytest.fixture(scope="module")
def locked(engine: EngineClient) -> Iterator[Live]:
    with serve(engine, api_keys=("first-key", "second-key"), allowed_origins=("http://friend.test",)) as server:
        yield server


def head(line: str = "POST /v1/chat/completions HTTP/1.1", *, body: bytes = b"", **headers: str) -> bytes:
    fields = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [line, *(f"{name}: {value}" for name, value in fields.items() if value != "-"), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


# ---- keys ----


def routes_and_methods() -> list[tuple[str, str]]:
    """Every route of the application: the open list below is the only exception."""
    never: Future[EngineClient] = Future()
    routes = [route for route in build_app(never, ServerConfig()).routes if isinstance(route, Route)]
    return sorted((route.path, method) for route in routes for method in route.methods or ())


@pytest.mark.parametrize(("path", "method"), routes_and_methods())
def test_h274_every_route_wants_the_key_unless_it_is_on_the_open_list(locked: Live, path: str, method: str):
    status, headers, _ = locked.request(method, path)
    if path in OPEN:
        assert status in (200, 503)
    else:
        assert status == 401
        assert headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Basic first-key", "first-key", "Bearer \xe9", "Bearer " + "k" * 7000],
    ids=["empty", "no key", "empty key", "wrong", "basic", "no scheme", "not ASCII", "long"],
)  # fmt: skip
def test_h280_wrong_keys(locked: Live, value: str):
    assert status_of(locked.raw(head("GET /v1/models HTTP/1.1", Authorization=value, Connection="close"))) == 401


def test_two_authorization_headers_are_no_key(locked: Live):
    data = head("GET /v1/models HTTP/1.1", Authorization="Bearer first-key", Connection="close")
    assert status_of(locked.raw(data)) == 200
    doubled = data.replace(b"Connection", b"Authorization: Bearer wrong\r\nConnection")
    assert status_of(locked.raw(doubled)) == 401


def test_each_configured_key_opens(locked: Live):
    for key in ("first-key", "second-key"):
        with openai.OpenAI(base_url=f"{locked.url}/v1", api_key=key, max_retries=0) as client:
            assert client.models.list().data
    with (
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="third-key", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_keys_share_no_cached_work(locked: Live):
    """What one key's request left in the prefix cache must not be noticeable with another."""
    body = json.dumps({"messages": user("The same long question. " * 8), "max_tokens": 1}).encode()

    def cached(key: str) -> int:
        headers = {**JSON, "authorization": f"Bearer {key}"}
        _, _, answer = locked.request("POST", "/v1/chat/completions", body, headers)
        return json.loads(answer)["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached("first-key") == 0
    assert cached("first-key") > 0
    assert cached("second-key") == 0


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1/../metrics", "/V1/models", "/v1/models;x=1", "/%76%31/models", "/metrics/"]
)
def test_h277_spelling_a_path_differently_opens_nothing(locked: Live, path: str):
    assert locked.request("GET", path)[0] == 401


# ---- hosts and origins ----


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1.evil.test", "10.0.0.1", "evil.test:80"])
def test_h294_a_name_that_was_rebound_to_loopback_is_refused(live: Live, host: str):
    assert status_of(live.raw(head("GET /v1/models HTTP/1.1", Host=host, Connection="close"))) == 421


@pytest.mark.parametrize(
    "host", ["", "a/?x=", "x/docs?", "user@127.0.0.1", "127.0.0.1 x", "127.0.0.1:99999999", "a" * 1000 + "\xe9"]
)
def test_h276_hosts_that_are_none(live: Live, host: str):
    assert status_of(live.raw(head("GET /v1/models HTTP/1.1", Host=host, Connection="close"))) == 400


def test_h276_no_host_and_two_hosts(live: Live):
    assert status_of(live.raw(b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n")) == 400
    two = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert status_of(live.raw(two)) == 400


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:8000"])
def test_loopback_names_are_answered(live: Live, host: str):
    assert status_of(live.raw(head("GET /v1/models HTTP/1.1", Host=host, Connection="close"))) == 200


def test_h293_pages_of_other_origins_may_not_post(live: Live):
    for origin in ("http://evil.test", "null", "https://127.0.0.1.evil.test"):
        status, headers, _ = live.request("POST", "/v1/chat/completions", BODY, {**JSON, "origin": origin})
        assert status == 403
        assert "access-control-allow-origin" not in headers
    assert live.request("POST", "/v1/chat/completions", BODY, {**JSON, "origin": live.url})[0] == 200


def test_h293_a_page_cannot_avoid_the_check_by_a_simple_request(live: Live):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=latin-1"):
        assert live.request("POST", "/v1/chat/completions", BODY, {"content-type": kind})[0] == 415


def test_allowed_origins_get_the_cors_headers(locked: Live):
    asking = {
        "origin": "http://friend.test",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    status, headers, _ = locked.request("OPTIONS", "/v1/chat/completions", None, asking)
    assert status == 200
    assert headers["access-control-allow-origin"] == "http://friend.test"
    sending = {**JSON, "origin": "http://friend.test", "authorization": "Bearer first-key"}
    status, headers, _ = locked.request("POST", "/v1/chat/completions", BODY, sending)
    assert status == 200
    assert headers["access-control-allow-origin"] == "http://friend.test"
    refused, headers, _ = locked.request("POST", "/v1/chat/completions", b"{}", sending)
    assert refused == 400
    assert "access-control-allow-origin" in headers


# ---- methods, paths, headers ----


def test_h275_methods(live: Live):
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
        status, headers, answer = live.request(method, "/v1/chat/completions", None)
        assert status == 405
        assert headers["allow"] == "POST"
        assert json.loads(answer)["error"]["code"] == "method_not_allowed"
    assert status_of(live.raw(head("TRACE / HTTP/1.1", Connection="close"))) == 405
    assert status_of(live.raw(b"post / HTTP/1.1\r\nHost: localhost\r\n\r\n")) == 400


def test_an_unknown_path_is_told_in_json(live: Live):
    status, _, answer = live.request("GET", "/v1/nothing")
    assert status == 404
    assert json.loads(answer)["error"]["type"] == "not_found_error"


def test_h278_forwarding_headers_are_ignored(locked: Live):
    for name in ("X-Forwarded-For", "Forwarded", "X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix"):
        assert locked.request("GET", "/v1/models", None, {name: "/health"})[0] == 401


def test_h290_request_ids_are_echoed_only_if_harmless(live: Live):
    assert live.request("GET", "/version", None, {"x-request-id": "my-id.7"})[1]["x-request-id"] == "my-id.7"
    for bad in ("a b", "a" * 129, "<script>", "é"):
        echoed = live.request("GET", "/version", None, {"x-request-id": bad})[1]["x-request-id"]
        assert echoed != bad
        assert len(echoed) == 32


def test_h297_the_software_is_not_announced(live: Live):
    _, headers, _ = live.request("GET", "/version")
    assert "server" not in headers
    assert "x-powered-by" not in headers


# ---- bytes on the socket ----


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (head("GET /version HTTP/1.1", X="a" * 70_000), 431),
        (head("GET /version HTTP/1.1", **{f"X{n}": "a" for n in range(200)}), 431),
        (b"GET /version HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 300_000, 431),
        (b"GET http://localhost/version HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
        (head(body=BODY, Transfer_Encoding="chunked"), 400),
        (head(body=BODY).replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n"), 400),
        (head(body=BODY, Content_Length="+4"), 400),
        (head(body=BODY, Content_Length="-", Transfer_Encoding="xchunked"), 400),
        (head("GET /version HTTP/1.1").replace(b"Content-Type:", b"Content-Type :"), 400),
        (head("GET /version HTTP/1.1", X="a\0b"), 400),
        (head(body=BODY, Content_Encoding="gzip", Connection="close"), 415),
    ],
    ids=[
        "H-283 long target", "H-283 long header", "H-283 many headers", "H-283 endless header", "H-277 absolute form",
        "H-277 asterisk", "H-289 HTTP/2", "H-289 TLS", "H-281 length and chunked", "H-281 two lengths", "H-281 +4",
        "H-281 unknown coding", "H-281 space before colon", "H-281 NUL", "H-209 compressed",
    ],
)  # fmt: skip
def test_refused_bytes(live: Live, data: bytes, status: int):
    assert status_of(live.raw(data)) == status
    assert live.request("GET", "/health")[0] == 200


def test_h197_a_body_announced_too_large_is_refused_unread(live: Live):
    answer = live.raw(head(Content_Length=str(10**9)))
    assert status_of(answer) == 413
    assert b"request_too_large" in answer


def test_h197_a_body_that_grows_too_large_is_refused_while_it_comes(live: Live):
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    answer = live.raw(head(Content_Length="-", Transfer_Encoding="chunked") + piece * 30)
    assert status_of(answer) == 413


def test_h211_a_large_body_is_refused_before_it_is_asked_for(live: Live):
    answer = live.raw(head(Content_Length=str(10**9), Expect="100-continue"))
    assert status_of(answer) == 413


def test_h210_a_body_in_single_bytes(live: Live):
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    assert (
        status_of(live.raw(head(Content_Length="-", Transfer_Encoding="chunked", Connection="close") + pieces)) == 200
    )


def test_h287_pipelined_requests_are_answered_in_order(live: Live):
    one = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = live.raw(one * 20 + last)
    assert answer.count(b"HTTP/1.1 200") == 21


def test_leaving_in_the_middle_of_a_body_leaves_nothing(live: Live):
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(head(body=BODY)[:-10])
    assert eventually(lambda: live.engine.num_requests == 0)
    assert live.request("GET", "/health")[0] == 200
