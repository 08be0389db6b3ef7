"""N and the bytes of J: what is wrong before there is a request, against servers as users run them."""

from __future__ import annotations

import json
import re
import resource
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hostile.cases import CHAT, OK
from hostile.world import KEYS, Target, World
from server.bodies import chat

from sensorium.config import ServerConfig
from sensorium.server.app import open_paths
from sensorium.server.page import page_routes

BODY = json.dumps(chat()).encode()
OPEN = {*open_paths(ServerConfig()), *(route.path for route in page_routes())}
KEY = f"Authorization: Bearer {KEYS[0]}"


def head(
    line: str = f"POST {CHAT} HTTP/1.1", *headers: str, body: bytes = b"", host: str | None = "localhost"
) -> bytes:
    lines = [line, *([f"Host: {host}"] if host is not None else []), *headers]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("utf-8", "surrogateescape") + body


def status_of(answer: bytes) -> int:
    """0 for a connection that is closed without an answer."""
    return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def talk(server: Target, data: bytes, timeout: float = 20) -> int:
    return status_of(server.raw(data, timeout))


def paths(server: Target) -> list[tuple[str, str]]:
    """Every route that the server itself describes, and some that it does not."""
    described = json.loads(server.request("GET", "/openapi.json", None, server.headers)[2])["paths"]
    found = [
        (method.upper(), path.replace("{name}", "x").replace("{id}", "x"))
        for path in described
        for method in described[path]
        if method != "parameters"
    ]
    return [*found, ("GET", "/nowhere"), ("POST", "/v2/embed"), ("GET", "/openapi.json")]


def test_h274_every_route_wants_the_key(hostile: World):
    server = hostile.servers["listed"]
    presented = [{}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer "}, {"authorization": "Bearer"}]
    presented += [{"authorization": KEYS[0]}, {"x-api-key": "wrong"}]
    for method, path in paths(server):
        for headers in presented:
            status, _, _ = server.request(method, path, b"{}" if method == "POST" else None, headers)
            assert (status == 401) is (path not in OPEN), (method, path, headers, status)
    assert talk(server, head(f"GET /v1/models?api_key={KEYS[0]} HTTP/1.1")) == 401
    assert talk(server, head("GET /v1/models HTTP/1.1", KEY, KEY)) == 401
    assert talk(server, head("GET /v1/models HTTP/1.1", KEY)) == OK


@pytest.mark.parametrize("method", ["OPTIONS", "HEAD", "TRACE", "CONNECT", "get", "PUT", "DELETE", "PATCH"])
def test_h275_methods(hostile: World, method: str):
    assert talk(hostile.servers["listed"], head(f"{method} {CHAT} HTTP/1.1")) in (0, 400, 401, 405)
    assert talk(hostile.servers["public"], head(f"{method} {CHAT} HTTP/1.1")) in (0, 400, 405)
    override = head(f"GET {CHAT} HTTP/1.1", "X-HTTP-Method-Override: POST")
    assert talk(hostile.servers["public"], override) == 405


@pytest.mark.parametrize(
    "host",
    [
        "a/?x=",
        "x/docs?",
        "localhost/livez#",
        "u:p@localhost",
        "local host",
        "",
        "a" * 1024,
        "evil.test",
        "127.0.0.1.evil.test",
        None,
    ],
)
def test_h276_h294_hosts(hostile: World, host: str | None):
    for server in hostile.servers.values():
        assert talk(server, head("GET /v1/models HTTP/1.1", KEY, host=host)) in (400, 421)
    two = head("GET /v1/models HTTP/1.1", KEY, "Host: localhost")
    assert talk(hostile.servers["listed"], two) == 400


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models",
        "/%76%31/models",
        "/v1/../metrics",
        "/v1/models;x=1",
        "/v1/models.",
        "/v1/models/",
        "/V1/MODELS",
        "/v1%2fmodels",
        "http://localhost/v1/models",
        "*",
        "/v1/models%00",
        "/health/../v1/models",
        "/metrics/../v1/models",
    ],
)
def test_h277_spellings_of_a_path_open_nothing(hostile: World, target: str):
    assert talk(hostile.servers["listed"], head(f"GET {target} HTTP/1.1")) in (400, 401, 404)


def test_h278_forwarding_headers_mean_nothing(hostile: World):
    server = hostile.servers["listed"]
    for line in (
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Host: localhost",
        "Forwarded: for=127.0.0.1",
        "X-Original-URL: /health",
        "X-Rewrite-URL: /health",
        "X-Forwarded-Prefix: /health",
    ):
        assert talk(server, head("GET /v1/models HTTP/1.1", line)) == 401
    server.request("GET", "/v1/models", None, {**server.headers, "x-forwarded-for": "6.6.6.6"})
    assert "6.6.6.6" not in "".join(server.log)


@pytest.mark.slow
def test_h279_a_better_guess_takes_no_longer(hostile: World):
    """The time of a refusal does not grow with the part of the key that is right."""
    server = hostile.servers["listed"]

    def seconds(key: str) -> float:
        begun = time.perf_counter()
        assert server.request("GET", "/v1/models", None, {"authorization": f"Bearer {key}"})[0] == 401
        return time.perf_counter() - begun

    guesses = ["z" * len(KEYS[0]), KEYS[0][:-1] + "z"]
    times: dict[str, list[float]] = {guess: [] for guess in guesses}
    for guess in guesses * 800:  # in turns, so that a busy moment meets both
        times[guess].append(seconds(guess))
    a, b = (statistics.median(times[guess]) for guess in guesses)
    assert abs(a - b) < 0.25 * max(a, b)


@pytest.mark.parametrize(
    "value", ["Bearer \u00e9\u20ac", "Bearer " + "a" * 60_000, "Bearer a\0b", "Bearer key-of-a\u200b"]
)
def test_h280_odd_keys(hostile: World, value: str):
    data = head("GET /v1/models HTTP/1.1", f"Authorization: {value}")
    assert talk(hostile.servers["listed"], data) in (400, 401, 431)


SMUGGLED = {
    "both lengths": head("POST /version HTTP/1.1", "Transfer-Encoding: chunked", body=BODY),
    "two lengths": head("POST /version HTTP/1.1", "Content-Length: 3", body=BODY),
    "an unknown coding": head(f"POST {CHAT} HTTP/1.1", "Transfer-Encoding: xchunked"),
    "a coding behind": head(f"POST {CHAT} HTTP/1.1", "Transfer-Encoding: chunked, identity"),
    "a length with a sign": head(f"POST {CHAT} HTTP/1.1", "Content-Length: +4") + b"{}  ",
    "a length in hex": head(f"POST {CHAT} HTTP/1.1", "Content-Length: 0x4") + b"{}  ",
    "a blank before the colon": head("GET /version HTTP/1.1", "X-A : b"),
    "NUL": head("GET /version HTTP/1.1", "X-A: a\0b"),
    "a bare return": b"GET /version HTTP/1.1\rHost: localhost\r\r",
    "a folded header": b"GET /version HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n c\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_h281_ambiguous_heads(hostile: World, name: str):
    for server in hostile.servers.values():
        assert talk(server, SMUGGLED[name]) in ((0, 400, OK) if name == "a folded header" else (0, 400, 408, 401))


def test_h282_no_second_request_is_smuggled(hostile: World):
    inner = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: smuggled\r\n\r\n"
    for framing in (
        f"Content-Length: {len(inner) + 5}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode() + inner,
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + inner,
    ):
        data = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode() + framing
        answer = hostile.servers["public"].raw(data)
        assert answer.count(b"HTTP/1.1 ") <= 1
        assert b'"object":"list"' not in answer


LARGE = {
    "H-283 a header of 70 KB": (head("GET /version HTTP/1.1", "X-A: " + "a" * 70_000), (431,)),
    "H-283 5,000 headers": (head("GET /version HTTP/1.1", *(f"X-{n}: a" for n in range(5000))), (431,)),
    "H-283 a header's name of 64 KB": (head("GET /version HTTP/1.1", "a" * 65_536 + ": b"), (431,)),
    "H-283 a line of 8 KB": (head("GET /" + "a" * 8192 + " HTTP/1.1"), (414, 431)),
    "H-289 HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (0, 400)),
    "H-289 an upgrade": (head("GET /version HTTP/1.1", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), (OK, 400)),
    "H-289 a proxy's line": (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + head("GET /version HTTP/1.1"), (0, 400)),
    "H-289 TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), (0, 400)),
    "H-210 an extension of 1 MB": (
        head(f"POST {CHAT} HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
        + b"2;"
        + b"a" * (1 << 20)
        + b"\r\n{}\r\n0\r\n\r\n",
        (400, 413, 431, 0),
    ),
    "H-210 trailers": (
        head(f"POST {CHAT} HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
        + b"2\r\n{}\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
        (400,),
    ),
    "H-211 too large, and asks first": (
        head(
            f"POST {CHAT} HTTP/1.1",
            "Content-Type: application/json",
            "Expect: 100-continue",
            f"Content-Length: {10**12}",
        ),
        (413,),
    ),
    "H-197 a terabyte announced": (
        head(f"POST {CHAT} HTTP/1.1", "Content-Type: application/json", f"Content-Length: {10**12}"),
        (413,),
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_bytes(hostile: World, name: str):
    data, expected = LARGE[name]
    server = hostile.servers["public"]
    assert talk(server, data) in expected
    assert server.health()[0] == OK


def test_h210_a_body_in_single_bytes(hostile: World):
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * 20_000)
    data = head(f"POST {CHAT} HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert talk(hostile.servers["public"], data + pieces + b"0\r\n\r\n") == OK


@pytest.mark.parametrize("ranges", ["bytes=0-0", "bytes=" + ",".join(f"{n}-{n + 1}" for n in range(900)), "bytes=-1"])
def test_h212_ranges(hostile: World, ranges: str):
    assert talk(hostile.servers["public"], head("GET / HTTP/1.1", f"Range: {ranges}")) in (OK, 206, 416)


def idle(server: Target, data: bytes, count: int) -> list[socket.socket]:
    sockets = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        one.sendall(data)
        sockets.append(one)
    return sockets


@pytest.mark.slow
def test_h284_h286_sockets_that_say_nothing_are_closed(hostile: World):
    """Others are served meanwhile, and after some seconds they are gone."""
    server = hostile.servers["public"]
    sockets = [*idle(server, b"GET / HT", 100), *idle(server, b"", 100)]
    try:
        assert server.send(chat(), CHAT)[0] == OK
        begun = time.monotonic()
        for one in sockets:
            with suppress(ConnectionResetError):
                while one.recv(4096):
                    pass
        assert time.monotonic() - begun < 60
    finally:
        for one in sockets:
            one.close()


@pytest.mark.slow
def test_h198_h285_a_body_that_does_not_come_is_given_up(hostile: World):
    begun = time.monotonic()
    data = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    assert talk(hostile.servers["public"], data.encode() + b"{", 40) == 408
    assert time.monotonic() - begun < 60


def test_h287_requests_in_a_row_on_one_socket(hostile: World):
    server = hostile.servers["public"]
    one = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = server.raw(one * 300 + head("GET /version HTTP/1.1"))
    assert answer.count(b"HTTP/1.1 200") == 301
    assert server.health()[0] == OK


@pytest.mark.parametrize("given", ["a" * 5000, "..", "*", "a b", "a%0d%0aX-Injected: 1", "0"])
def test_h290_ids_of_clients_are_never_ids_of_ours(hostile: World, given: str):
    server = hostile.servers["public"]
    found = [server.request("POST", CHAT, BODY, {**server.headers, "x-request-id": given}) for _ in range(2)]
    assert {status for status, _, _ in found} == {OK}
    for _, headers, _ in found:
        assert "x-injected" not in headers
        assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", headers["x-request-id"])
    with ThreadPoolExecutor(2) as pool:  # one id twice at the same time: neither ends the other
        send = lambda _: server.request("POST", CHAT, BODY, {**server.headers, "x-request-id": "same"})[0]  # noqa: E731
        assert list(pool.map(send, range(2))) == [OK, OK]


def test_h293_pages_elsewhere_get_nothing(hostile: World):
    server = hostile.servers["public"]
    preflight = server.request(
        "OPTIONS", CHAT, None, {"origin": "http://evil.test", "access-control-request-method": "POST"}
    )
    assert preflight[0] in (400, 405)
    assert "access-control-allow-origin" not in preflight[1]
    status, headers, _ = server.request("POST", CHAT, BODY, {**server.headers, "origin": "http://evil.test"})
    assert status == 403
    assert "access-control-allow-origin" not in headers
    assert server.request("POST", CHAT, BODY, {"content-type": "text/plain"})[0] == 415


def test_h297_nothing_announces_the_software(hostile: World):
    for path in ("/version", "/health", "/v1/models", "/nowhere"):
        _, headers, _ = hostile.servers["public"].request("GET", path)
        assert not {"server", "x-powered-by", "via"} & set(headers)


@pytest.mark.slow
def test_h288_more_sockets_than_descriptors(hostile: World):
    """What is over is not accepted, and room made is used again; nobody spins."""
    server = hostile.servers["public"]
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    used = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 20, hard))
    sockets = []
    try:
        sockets = idle(server, b"GET", 60)
    finally:
        for one in sockets:
            one.close()
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if server.send(chat(), CHAT)[0] == OK:
                return
        except OSError:
            continue
    raise AssertionError("the server did not come back")
