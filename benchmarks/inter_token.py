"""Time between tokens of running text streams while large bodies are uploaded: engine in a thread and in a process.

    python benchmarks/inter_token.py [--streams 8] [--seconds 8] [--megabytes 90]

The bodies are read and parsed to the end, then refused for the name of their model: what is measured is what parsing
does to others. client: gaps at the socket; engine_step: what a step takes, with the pauses before it.
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n"
)
UPLOADER = """
import socket, sys, time
port, size, until = int(sys.argv[1]), int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
body = b'{"model":"none","messages":[{"role":"user","content":[{"type":"image_url","image_url":'
body += b'{"url":"data:image/png;base64,' + b"A" * size + b'"}}]}]}'
head = sys.argv[4].format(len(body)).encode()
count = 0
while time.monotonic() < until:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + body)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 404"), answer
    count += 1
print(count)
"""


def stream(port: int, seconds: float, gaps: list[float]) -> None:
    """Streams one answer after another; appends the seconds between its chunks."""
    until = time.monotonic() + seconds
    message = {
        "messages": [{"role": "user", "content": "Go on."}],
        "max_tokens": 800,
        "ignore_eos": True,
        "stream": True,
    }
    body = json.dumps(message).encode()
    while time.monotonic() < until:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(HEAD.format(len(body)).encode() + body)
            last, received = 0.0, b""
            while b"[DONE]" not in received[-64:] and time.monotonic() < until:
                received = received[-64:] + connection.recv(65536)
                now = time.monotonic()
                if last:
                    gaps.append(now - last)
                last = now


def measure(port: int, streams: int, seconds: float, size: int) -> dict[str, float]:
    """Gaps in ms. size: bytes of each body that is uploaded meanwhile; 0 is none."""
    gaps: list[float] = []
    before = counters(port)
    uploader = None
    if size:
        command = [sys.executable, "-c", UPLOADER, str(port), str(size), str(seconds), HEAD]
        uploader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    threads = [threading.Thread(target=stream, args=(port, seconds, gaps)) for _ in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    uploads = int(uploader.communicate()[0]) if uploader is not None else 0
    steps = counters(port) - before
    return {
        "client_p50_ms": statistics.median(gaps) * 1e3,
        "client_p99_ms": statistics.quantiles(gaps, n=100)[98] * 1e3,
        "engine_step_ms": seconds / max(steps, 1) * 1e3,
        "uploads": uploads,
    }


def counters(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        found = re.search(r"^sensorium:engine_steps_total\{[^}]*\} (\S+)", reply.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--megabytes", type=int, default=90)
    args = parser.parse_args()
    for flag in ("--engine-process", "--no-engine-process"):
        command = [sys.executable, "-m", "sensorium", "serve", "--port", "0", "--no-access-log", flag]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "ready after" in line)
            threading.Thread(target=server.stderr.read, daemon=True).start()
            port = int(re.findall(r":(\d+)", line)[-1])
            measure(port, args.streams, 1, 0)
            for size in (0, args.megabytes << 20):
                result = measure(port, args.streams, args.seconds, size)
                print(flag, f"uploads of {size >> 20} MB:", {name: round(value, 1) for name, value in result.items()})
            server.terminate()


if __name__ == "__main__":
    main()
