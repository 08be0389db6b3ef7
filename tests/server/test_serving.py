"""Starting, loading, draining, stopping; clients and servers that are slow."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from server.bodies import chat
from server.live import Live, eventually, serve, user

from sensorium.config import ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.server import body, protocol, sse
from sensorium.server.run import BindError, bind

ROOT = Path(__file__).resolve().parents[2]

# Serves what LOAD makes, when a line arrives on standard input.
SERVER = """
import sys
from sensorium.config import EngineConfig, ServerConfig
from sensorium.server.run import run_server

def load():
    sys.stdin.readline()
    from sensorium.engine.client import EngineClient
    return EngineClient(EngineConfig(model=sys.argv[1], max_model_len=1024, kv_cache_bytes=32 << 20))

run_server(ServerConfig(port=0, drain_s=20), load, on_bound=lambda url: print(url, flush=True))
"""


@contextmanager
def server_process(model: str) -> Iterator[tuple[subprocess.Popen[str], Live]]:
    command = [sys.executable, "-c", SERVER, model]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rsplit(":", 1)[1])
            yield process, Live(port, None)  # type: ignore[arg-type]
        finally:
            process.kill()


def half_a_request(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
    connection.sendall(b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
    return connection


def test_it_says_loading_then_serves_then_finishes_what_runs(any_model: Path):
    with server_process(str(any_model)) as (process, live):
        status, _, answer = live.request("GET", "/health")
        assert (status, json.loads(answer)) == (503, {"status": "loading"})
        status, answer = live.post(chat())
        assert (status, answer["error"]["code"]) == (503, "engine_dead")
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert eventually(lambda: live.request("GET", "/health")[0] == 200)

        body = json.dumps(chat(messages=user("Go on."), max_tokens=300, ignore_eos=True, stream=True)).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", live.port), timeout=60) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            received = connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            assert eventually(lambda: not accepts(live.port))
            while piece := connection.recv(65536):
                received += piece
        assert b'"finish_reason":"length"' in received
        assert b"data: [DONE]" in received
        assert process.wait(60) == 0


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def test_a_signal_while_loading_stops_and_a_second_one_stops_at_once():
    with server_process("none") as (process, live):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    with server_process("none") as (process, live), half_a_request(live.port):
        assert live.request("GET", "/health")[0] == 503
        process.send_signal(signal.SIGTERM)
        assert eventually(lambda: not accepts(live.port))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_a_model_that_cannot_be_loaded_ends_the_server_with_the_reason():
    with server_process("./no-such-folder") as (process, _):
        _, errors = process.communicate("\n", timeout=60)
        assert process.returncode == 1
        assert "no model folder" in errors.splitlines()[-1]


def test_a_port_in_use_is_known_before_anything_is_loaded():
    with bind(ServerConfig(port=0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port}.*in use"):
            bind(ServerConfig(port=port))


def test_other_machines_are_let_in_only_with_a_key_or_on_purpose():
    with pytest.raises(BindError, match="API key"):
        bind(ServerConfig(host="0.0.0.0", port=0))
    bind(ServerConfig(host="0.0.0.0", port=0, api_keys=("secret",))).close()
    bind(ServerConfig(host="0.0.0.0", port=0, insecure=True)).close()
    with pytest.raises(BindError, match="cannot listen"):
        bind(ServerConfig(host="no.such.host.invalid", port=0, insecure=True))


# ---- slow clients: the limits are seconds, shortened here ----


def test_h284_h286_silent_and_slow_heads_are_hung_up_on(engine: EngineClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "HEAD_S", 1.0)
    with serve(engine) as live:
        assert live.raw(b"") == b""
        assert live.raw(b"GET /health HTTP/1.1\r\nHost: lo") == b""
        assert live.request("GET", "/health")[0] == 200


def test_h198_h285_a_body_that_does_not_come_is_given_up(engine: EngineClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(body, "GRACE_S", 0.2)
    with serve(engine) as live, half_a_request(live.port) as connection:
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"request_timeout" in answer


def test_a_stream_that_waits_is_kept_alive_by_comments(engine: EngineClient):
    with serve(engine, sse_keep_alive_interval=0.0003) as live:
        content = json.dumps(chat(max_tokens=60, ignore_eos=True, stream=True)).encode()
        _, _, answer = live.request("POST", "/v1/chat/completions", content, {"content-type": "application/json"})
    assert b": waiting\n\n" in answer
    assert answer.endswith(b"data: [DONE]\n\n")


def test_a_client_that_takes_nothing_is_given_up(engine: EngineClient, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sse, "TICK_S", 0.1)
    monkeypatch.setattr(sse, "STUCK_S", 0.3)
    wide = chat(max_tokens=1900, ignore_eos=True, stream=True, n=4, logprobs=True, top_logprobs=20)
    content = json.dumps(wide).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    with serve(engine) as live, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", live.port))
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
        assert eventually(lambda: engine.num_requests > 0)
        assert eventually(lambda: engine.num_requests == 0)
        metrics = live.request("GET", "/metrics")[2].decode()
    assert 'finished_reason="abort"' in metrics
