"""What live conversation costs on a small machine: `python benchmarks/live_cpu.py`.

Serves the packaged model. First a live session with a camera, at the pace of the clock, that is asked aloud about its
picture every few seconds: what its units take. Then the same question in turns: how long after its end the first
sound comes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from websockets.sync.client import connect

from sensorium.config import MediaLimits
from sensorium.media.audio import from_bytes

RATE, TURN_RATE = 16_000, 24_000
DEMO = Path(__file__).parent.parent / "sensorium" / "packaged" / "demo"
HEADER = struct.Struct("<BBHIQ")
SOUND, JPEG = 1, 2


@contextlib.contextmanager
def served(model: str, threads: int) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [*([model] if model else []), "--port", str(port), "--no-access-log"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    server = subprocess.Popen([sys.executable, "-m", "sensorium", "serve", *flags], env=environment)
    url = f"127.0.0.1:{port}"
    try:
        while server.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{url}/health", timeout=5).close()
                break
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def asked(rate: int) -> bytes:
    """The bundled question, 16 bit."""
    sound = from_bytes((DEMO / "question.wav").read_bytes(), "question.wav", MediaLimits()).data
    at = np.arange(int(len(sound) * rate / RATE)) * RATE / rate
    return (np.interp(at, np.arange(len(sound)), sound) * 32767).astype("<i2").tobytes()


def picture() -> bytes:
    file = io.BytesIO()
    Image.open(DEMO / "scene.png").convert("RGB").save(file, "JPEG", quality=85)
    return file.getvalue()


def live(url: str, seconds: int, every: int) -> list[dict]:
    """The units of a session."""
    track = np.zeros(seconds * RATE, "<i2")
    question = np.frombuffer(asked(RATE), "<i2")
    for start in range(4 * RATE, len(track) - len(question), every * RATE):
        track[start : start + len(question)] = question
    units: list[dict] = []
    with connect(f"ws://{url}/v1/duplex", max_size=None, subprotocols=["sensorium.duplex.v1"]) as talk:  # type: ignore[list-item]
        talk.send(json.dumps({"type": "start"}))
        began, shown = time.monotonic(), picture()
        for number in range(seconds):
            time.sleep(max(0.0, began + number + 1 - time.monotonic()))
            talk.send(HEADER.pack(JPEG, 0, 0, 0, 0) + shown)
            pcm = track[number * RATE : (number + 1) * RATE].tobytes()
            talk.send(HEADER.pack(SOUND, 0, 0, number, number * RATE) + pcm)
            while len(units) <= number:
                data = talk.recv()
                if isinstance(data, str) and (event := json.loads(data))["type"] == "unit":
                    units.append(event)
    return units


def turn(url: str) -> tuple[float, str]:
    """Seconds from the end of a spoken question about a picture to the first sound, and the answer."""
    shown = "data:image/jpeg;base64," + base64.b64encode(picture()).decode()
    with connect(f"ws://{url}/v1/realtime?model=sensorium-tiny", max_size=None) as talk:
        heard = {"format": {"type": "audio/pcm", "rate": TURN_RATE}, "turn_detection": None}
        talk.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "audio": {"input": heard}}}))
        content = [{"type": "input_image", "image_url": shown}]
        item = {"type": "message", "role": "user", "content": content}
        talk.send(json.dumps({"type": "conversation.item.create", "item": item}))
        sound = base64.b64encode(asked(TURN_RATE)).decode()
        talk.send(json.dumps({"type": "input_audio_buffer.append", "audio": sound}))
        began = time.monotonic()
        talk.send(json.dumps({"type": "input_audio_buffer.commit"}))
        talk.send(json.dumps({"type": "response.create"}))
        first, text = 0.0, ""
        while (event := json.loads(talk.recv()))["type"] != "response.done":
            if event["type"] == "error":
                raise SystemExit(event["error"]["message"])
            if event["type"] == "response.output_audio.delta":
                first = first or time.monotonic() - began
            text += event["delta"] if event["type"] == "response.output_audio_transcript.delta" else ""
    return first, text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="", help="folder; by default the packaged model")
    parser.add_argument("--seconds", type=int, default=40)
    parser.add_argument("--every", type=int, default=6, help="seconds from one question to the next")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with served(args.model, args.threads) as url:
        units = live(url, args.seconds, args.every)
        for kind in ("listen", "speak"):
            took = [unit["ms"]["total"] for unit in units if unit["decision"] == kind]
            if took:
                print(f"{kind}: {len(took)} units, p50 {statistics.median(took):.0f} ms, longest {max(took):.0f} ms")
        took = [unit["ms"]["total"] for unit in units]
        late = sum(unit["behind_ms"] > 0 for unit in units)
        print(f"real-time factor {sum(took) / len(took) / 1000:.2f}, {late} of {len(units)} units late")
        print("said:", " ".join("".join(unit["text"] for unit in units).split()))
        turn(url)  # what is made ready on first use
        times = [turn(url) for _ in range(args.turns)]
        first = [seconds for seconds, _ in times]
        print(f"in turns: first sound {1e3 * statistics.median(first):.0f} ms after the question, at most "
              f"{1e3 * max(first):.0f} ms; {times[0][1]!r}")  # fmt: skip


if __name__ == "__main__":
    main()
