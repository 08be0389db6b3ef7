"""`sensorium serve` as users run it, while its processes are killed, stopped and asked to end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from server.bodies import chat
from server.live import Live, eventually, user

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and engine processes")


@dataclass(frozen=True)
class Service(Live):
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)

    @property
    def engine_pid(self) -> int:
        found = re.findall(r"(?:engine is process|back \(process) (\d+)", "".join(self.log))
        return int(found[-1])

    def health(self) -> tuple[int, str]:
        status, _, answer = self.request("GET", "/health")
        return status, json.loads(answer)["status"]


@contextmanager
def service(model: Path, *flags: str, wait: str = "ready after") -> Iterator[Service]:
    """A server that has logged `wait`. Nothing of it may be left when the test is over."""
    limits = ["--max-model-len", "2048", "--kv-cache-bytes", "64M", "--no-access-log"]
    command = [sys.executable, "-m", "sensorium", "serve", str(model), "--port", "0", *limits, *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log: list[str] = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr or ()))
        reader.start()
        try:
            assert eventually(lambda: any(wait in line for line in log) or process.poll() is not None)
            url = re.search(r"listening on http://127.0.0.1:(\d+)", "".join(log))
            assert url, "".join(log)
            yield Service(int(url[1]), None, process, log)  # pyright: ignore
        finally:
            process.kill()
            process.wait()
            reader.join()
            pids = re.findall(r"process (\d+)", "".join(log))
            assert eventually(lambda: not any(running(int(pid)) for pid in pids))


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc/self").exists() else True


class Streaming:
    """One streamed request in a thread of its own; `begun` is set at its first text."""

    def __init__(self, live: Live, **fields: Any) -> None:
        body = {"messages": user("Go on."), "max_tokens": 1500, "ignore_eos": True, "stream": True, **fields}
        self._body = json.dumps(chat(**body)).encode()
        self._port = live.port
        self.status = 0
        self.received = b""
        self.begun = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Connection: close\r\nContent-Length: {len(self._body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", self._port), timeout=60) as connection:
            connection.sendall(head.encode() + self._body)
            while piece := connection.recv(65536):
                self.received += piece
                if self.received.count(b"data: ") > 2:
                    self.begun.set()

    def wait(self) -> list[dict[str, Any]]:
        """Every event but [DONE], which must be the last; [] for an answer that is no stream."""
        self._thread.join()
        self.status = int(self.received.split()[1])
        lines = re.findall(rb"^data: (.*?)\r?$", self.received, re.MULTILINE)
        if self.status == 200:
            assert lines.pop() == b"[DONE]"
        return [json.loads(line) for line in lines]

    def errors(self) -> list[str]:
        return [event["error"]["code"] for event in self.wait() if "error" in event]


def test_f009_f047_streams_end_with_one_error_each_the_rest_is_done_and_a_second_signal_ends_it(any_model: Path):
    with service(any_model, "--max-num-seqs", "4") as live:
        streams = [Streaming(live, messages=user(f"Number {i}.")) for i in range(4)]
        assert all(stream.begun.wait(120) for stream in streams)
        queued = [Streaming(live, messages=user(f"Later {i}."), max_tokens=5) for i in range(3)]
        assert eventually(lambda: b'num_requests_waiting{engine="0",model_name' in live.request("GET", "/metrics")[2])
        assert eventually(lambda: waiting(live) == 3)
        os.kill(live.engine_pid, signal.SIGKILL)
        killed = time.monotonic()
        assert [stream.errors() for stream in streams] == [["engine_restarted"]] * 4
        assert time.monotonic() - killed < 45, "noticed, rather than waited out"
        assert live.health() == (503, "restarting")
        status, headers, answer = live.request(
            "POST", "/v1/chat/completions", json.dumps(chat()).encode(), {"content-type": "application/json"}
        )
        assert (status, json.loads(answer)["error"]["code"]) == (503, "engine_dead")
        assert int(headers["retry-after"]) > 0
        assert [stream.errors() for stream in queued] == [[]] * 3
        assert live.health() == (200, "ok")
        assert live.post(chat())[0] == 200
        assert b'sensorium:engine_restarts_total{engine="0",model_name' in live.request("GET", "/metrics")[2]
        stream, pid = Streaming(live), live.engine_pid
        assert stream.begun.wait(120)
        live.process.send_signal(signal.SIGINT)
        assert eventually(lambda: live.health() == (503, "draining"))
        live.process.terminate()
        assert live.process.wait(60) == 128 + signal.SIGTERM
        assert eventually(lambda: not running(pid))


def waiting(live: Live) -> int:
    found = re.search(rb"sensorium:num_requests_waiting\{[^}]*\} (\d+)", live.request("GET", "/metrics")[2])
    return int(found[1]) if found else -1


@pytest.mark.slow
def test_f010_the_engine_ends_with_a_server_that_is_killed(any_model: Path):
    with service(any_model) as live:
        stream = Streaming(live)
        assert stream.begun.wait(120)
        pid = live.engine_pid
        assert running(pid)
        live.process.kill()
        assert eventually(lambda: not running(pid))


@pytest.mark.slow
def test_f046_a_term_signal_lets_running_requests_finish_and_refuses_the_rest(any_model: Path):
    with service(any_model, "--max-num-seqs", "2") as live:
        streams = [Streaming(live, messages=user(f"Number {i}.")) for i in range(2)]
        assert all(stream.begun.wait(120) for stream in streams)
        queued = Streaming(live, max_tokens=5)
        assert eventually(lambda: waiting(live) == 1)
        live.process.terminate()
        assert eventually(lambda: live.health() == (503, "draining"))
        status, headers, answer = live.request(
            "POST", "/v1/chat/completions", json.dumps(chat()).encode(), {"content-type": "application/json"}
        )
        assert (status, json.loads(answer)["error"]["code"]) == (503, "shutting_down")
        assert "retry-after" in headers
        assert queued.errors() == ["shutting_down"]
        for stream in streams:
            events = stream.wait()
            assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert live.process.wait(60) == 0


@pytest.mark.slow
def test_f046_what_does_not_finish_in_time_is_cut_and_said_so(any_model: Path):
    with service(any_model, "--shutdown-timeout", "0.2") as live:
        stream = Streaming(live)
        assert stream.begun.wait(120)
        live.process.terminate()
        assert stream.errors() == ["shutting_down"]
        assert live.process.wait(60) == 75


@pytest.mark.slow
def test_f048_a_signal_while_the_model_loads_or_comes_back_ends_it_soon(any_model: Path):
    with service(any_model, wait="listening on") as live:
        live.process.terminate()
        assert live.process.wait(60) == 0
    with service(any_model) as live:
        os.kill(live.engine_pid, signal.SIGKILL)
        assert eventually(lambda: live.health()[1] == "restarting")
        live.process.terminate()
        assert live.process.wait(60) == 0


@pytest.mark.slow
def test_f048_a_signal_while_the_engine_hangs_ends_it_when_the_time_is_over(any_model: Path):
    with service(any_model, "--shutdown-timeout", "1") as live:
        stream = Streaming(live)
        assert stream.begun.wait(120)
        os.kill(live.engine_pid, signal.SIGSTOP)
        live.process.terminate()
        assert stream.errors() == ["shutting_down"]
        assert live.process.wait(60) == 75


@pytest.mark.slow
def test_f049_other_signals_do_nothing(any_model: Path):
    with service(any_model) as live:
        for _ in range(20):
            for sig in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGCHLD):
                live.process.send_signal(sig)
                os.kill(live.engine_pid, sig)
        assert live.post(chat())[0] == 200
        assert live.health() == (200, "ok")


@pytest.mark.slow
def test_f011_with_the_times_that_users_have(any_model: Path):
    with service(any_model, "--engine-hang-s", "25") as live:
        stream = Streaming(live)
        assert stream.begun.wait(120)
        stopped = time.monotonic()
        os.kill(live.engine_pid, signal.SIGSTOP)
        assert eventually(lambda: live.health() == (503, "stalled"))
        assert time.monotonic() - stopped > 10
        assert stream.errors() == ["engine_restarted"]
        assert 24 < time.monotonic() - stopped < 60
        assert eventually(lambda: live.health() == (200, "ok"))
