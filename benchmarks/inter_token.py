"""Time between tokens of running text streams, in turns without and with uploads of 4K pictures and 100 MB videos.

    python benchmarks/inter_token.py [--streams 8] [--seconds 8] [--rounds 3] [--answered]

Uploads come from two processes of low priority, pictures from one and videos from the other, each one at a time and at
the speed of a gigabit network (--megabytes-per-second). They are read and parsed to the end, then refused for the name
of their model; with --answered they are decoded, encoded and answered with one token, so what those cost counts too.
client: gaps at the socket; engine_step: what a step takes, with the pauses before it. The ratios are those of the
rounds' medians and minima.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n"
)
PAUSE_S = {"picture": 0.5, "video": 1.0}
CHUNK = 256 << 10


def picture() -> bytes:
    """A JPEG of 3840 x 2160 pixels, about 4 MB."""
    rough = np.random.default_rng(0).integers(0, 255, (540, 960, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rough).resize((3840, 2160), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def video(size: int) -> bytes:
    """Motion JPEG of 1920 x 1080 pixels, at least `size` bytes."""
    noise = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        track = container.add_stream("mjpeg", rate=30, options={"qmin": "2", "qmax": "2"})
        track.width, track.height, track.pix_fmt = 1920, 1080, "yuvj420p"
        number = 0
        while buffer.tell() < size:
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 16 * number, axis=1))
            frame.pts, number = number, number + 1
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return buffer.getvalue()


def upload(port: int, file: str, pause_s: float, seconds: float, rate: float) -> None:
    """Sends the file's request again and again at `rate` bytes a second; prints how many and which answers came."""
    os.nice(19)
    until = time.monotonic() + seconds
    body = Path(file).read_bytes()
    statuses: list[str] = []
    while time.monotonic() < until:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(HEAD.format(len(body)).encode())
            start = time.monotonic()
            for at in range(0, len(body), CHUNK):
                time.sleep(max(start + at / rate - time.monotonic(), 0))
                connection.sendall(memoryview(body)[at : at + CHUNK])
            statuses.append(connection.recv(65536)[9:12].decode())
        time.sleep(pause_s)
    print(json.dumps({status: statuses.count(status) for status in set(statuses)}))


def stream(port: int, streams: int, seconds: float) -> list[float]:
    """Seconds between the chunks of `streams` answers at a time."""
    message = {"messages": [{"role": "user", "content": "Go on."}], "ignore_eos": True, "stream": True}
    body = json.dumps(message | {"max_tokens": 1600}).encode()
    until = time.monotonic() + seconds
    gaps: list[float] = []
    last: dict[socket.socket, float] = {}
    with selectors.DefaultSelector() as selector:

        def begin() -> None:
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(HEAD.format(len(body)).encode() + body)
            selector.register(connection, selectors.EVENT_READ)

        for _ in range(streams):
            begin()
        while (now := time.monotonic()) < until:
            for key, _ in selector.select(until - now):
                connection: socket.socket = key.fileobj  # pyright: ignore - what was registered
                received, now = connection.recv(65536), time.monotonic()
                if connection in last:
                    gaps.append(now - last[connection])
                last[connection] = now
                if b"[DONE]" in received[-64:]:
                    selector.unregister(connection)
                    connection.close()
                    del last[connection]
                    begin()
        for key in list(selector.get_map().values()):
            key.fileobj.close()  # pyright: ignore - what was registered
    return gaps


def measure(
    port: int, streams: int, seconds: float, files: dict[str, str], rate: float = 0.0
) -> dict[str, float | str]:
    """Gaps in ms. files: by kind, what is uploaded meanwhile, `rate` bytes a second."""
    command = [sys.executable, __file__, "--upload", str(port)]
    uploaders = {
        kind: subprocess.Popen(
            [*command, file, str(PAUSE_S[kind]), str(seconds), str(rate)], stdout=subprocess.PIPE, text=True
        )
        for kind, file in files.items()
    }  # fmt: skip
    before = steps(port)
    gaps = stream(port, streams, seconds)
    count = steps(port) - before
    found: dict[str, float | str] = {
        "client_p50_ms": round(statistics.median(gaps) * 1e3, 1),
        "client_p99_ms": round(statistics.quantiles(gaps, n=100)[98] * 1e3, 1),
        "engine_step_ms": round(seconds / max(count, 1) * 1e3, 1),
    }
    return found | {f"{kind}s": process.communicate()[0].strip() for kind, process in uploaders.items()}


def steps(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        found = re.search(r"^sensorium:engine_steps_total\{[^}]*\} (\S+)", reply.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def requests(folder: Path, megabytes: int, *, answered: bool) -> dict[str, str]:
    """The bodies as files, by kind."""
    made: dict[str, str] = {}
    for kind, name, data in (
        ("picture", "image_url", picture()),
        ("video", "video_url", video(megabytes * 1_000_000)),
    ):
        media = "image/jpeg" if kind == "picture" else "video/mp4"
        part = {"type": name, name: {"url": f"data:{media};base64,{base64.b64encode(data).decode()}"}}
        body = {"messages": [{"role": "user", "content": [part]}], "max_tokens": 1}
        path = folder / kind
        path.write_text(json.dumps(body | ({} if answered else {"model": "none"})))
        made[kind] = str(path)
        print(f"a {kind} of {len(data) / 1e6:.1f} MB")
    return made


def compare(rounds: Sequence[tuple[dict[str, float | str], dict[str, float | str]]]) -> None:
    for name in ("client_p50_ms", "client_p99_ms", "engine_step_ms"):
        quiet, loaded = ([float(result[name]) for result in side] for side in zip(*rounds, strict=True))
        medians = statistics.median(loaded) / statistics.median(quiet)
        print(f"{name}: with uploads {medians:.2f} x quiet (medians), {min(loaded) / min(quiet):.2f} x (minima)")


def main() -> None:
    if sys.argv[1:2] == ["--upload"]:
        upload(int(sys.argv[2]), sys.argv[3], *map(float, sys.argv[4:7]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--megabytes-per-second", type=float, default=125)
    parser.add_argument("--answered", action="store_true")
    args, serve = parser.parse_known_args()
    command = [sys.executable, "-m", "sensorium", "serve", "--port", "0", "--no-access-log", *serve]
    with tempfile.TemporaryDirectory() as folder:
        files = requests(Path(folder), args.megabytes, answered=args.answered)
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            line = next(line for line in server.stderr if "ready after" in line)
            threading.Thread(target=server.stderr.read, daemon=True).start()
            port = int(re.findall(r":(\d+)", line)[-1])
            measure(port, args.streams, 4, {})
            rate = args.megabytes_per_second * 1e6
            rounds: list[tuple[dict[str, float | str], dict[str, float | str]]] = []
            for _ in range(args.rounds):
                rounds.append(
                    (
                        measure(port, args.streams, args.seconds, {}),
                        measure(port, args.streams, args.seconds, files, rate),
                    )
                )
                print(*rounds[-1], sep="\n")
            compare(rounds)
            server.terminate()


if __name__ == "__main__":
    main()
