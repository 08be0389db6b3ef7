"""`make demo`: starts the server on the packaged model and asks it about a real picture, recording and video file.

In the end the model is asked aloud in a live session that is shown the picture, reads a sentence aloud and writes down
what it hears.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import wave
from importlib.resources import files
from pathlib import Path
from typing import Any

from sensorium.cli.talk import connected, read_picture, read_sound

MODEL = "sensorium-tiny"
ASSETS = Path(str(files("sensorium") / "packaged" / "demo"))
KINDS = {".png": "image", ".jpg": "image", ".wav": "audio", ".mp3": "audio", ".mp4": "video", ".webm": "video"}
PAGE_PORT = 8000
SAID = "The small bird is near the window."
SOUND_RATE = 24_000
ASKED = ("question.wav", "scene.png", "A blue star, a red circle, a green triangle and a purple heart.")
"""A question asked aloud, what is shown meanwhile, and the answer."""


def main() -> int:
    started = time.perf_counter()
    questions = json.loads((ASSETS / "demo.json").read_text("utf-8"))
    port = _port()
    server = subprocess.Popen([sys.executable, "-m", "sensorium", "serve", "--port", str(port), "--no-access-log"])
    url = f"http://127.0.0.1:{port}"
    try:
        # Imported while the server imports torch.
        from openai import OpenAI

        _wait(server, url)
        print(f"Ready to answer after {time.perf_counter() - started:.1f} s.", flush=True)
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        right = [_ask(client, **question) for question in questions]
        right.append(_converse(url, *ASKED))
        _say(client, SAID)
        print(f"\n{sum(right)} of {len(right)} answers are as expected.", flush=True)
        if sys.stdout.isatty():
            print(f"Open {url} to ask your own questions; Ctrl-C stops the server.", flush=True)
            server.wait()
        return 0 if all(right) else 1
    except KeyboardInterrupt:
        return 0
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)
        server.wait()


def _port() -> int:
    """The usual port if nobody has it, else any free one."""
    for port in (PAGE_PORT, 0):
        with socket.socket() as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise SystemExit("There is no free port on 127.0.0.1.")


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    """Until /health says ok. What the server has to say goes to the terminal by itself."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit(f"The server stopped with exit code {server.returncode} before it was ready.")


def _ask(client: Any, question: str, file: str, expected: str) -> bool:
    """Ask about one file, print the answer as it comes, and say whether it is the expected one."""
    path = ASSETS / file
    print(f"\n{path}\n> {question}", flush=True)
    message = {"role": "user", "content": [_part(path), {"type": "text", "text": question}]}
    started = time.perf_counter()
    first = 0.0
    answer, count = "", 0
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[message],
        temperature=0,
        max_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        text = "".join(choice.delta.content or "" for choice in chunk.choices)
        first = first or (time.perf_counter() if text else 0.0)
        answer += text
        print(text, end="", flush=True)
        count = chunk.usage.completion_tokens if chunk.usage else count
    seconds = time.perf_counter() - first
    speed = f"{(count - 1) / seconds:.0f} tokens/s" if count > 1 else "1 token"
    print(f"\n({speed}, the first after {(first - started) * 1e3:.0f} ms)", flush=True)
    if answer.strip() != expected:
        print(f"expected: {expected}", flush=True)
    return answer.strip() == expected


def _converse(url: str, recording: str, picture: str, expected: str) -> bool:
    """Ask aloud in a live session, as `sensorium talk` does, and print what it says by itself."""
    print(f"\n{ASSETS / picture}\n> (live, asked aloud in {recording})", flush=True)
    said, started = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(said), connected(url, "") as talk:
        talk.start({"instructions": None, "voice": None, "input": recording})
        talk.recording(read_sound(ASSETS / recording), read_picture(ASSETS / picture))
    answer = said.getvalue().strip()
    print(f"{answer}\n({talk.num_units} s of conversation in {time.perf_counter() - started:.1f} s)", flush=True)
    if answer != expected:
        print(f"expected: {expected}", flush=True)
    return answer == expected


def _say(client: Any, text: str) -> None:
    """Have a text read aloud and print what the model hears in it, which is right nearly always: codes are drawn."""
    print(f"\n> Say: {text}", flush=True)
    started = time.perf_counter()
    spoken = client.audio.speech.create(model=MODEL, voice="default", input=text, response_format="pcm").read()
    print(f"({len(spoken) / 2 / SOUND_RATE:.1f} s of sound in {time.perf_counter() - started:.1f} s)", flush=True)
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, SOUND_RATE, 0, "NONE", ""))
        sound.writeframes(spoken)
    file.seek(0)
    heard = client.audio.transcriptions.create(model=MODEL, file=("said.wav", file)).text
    print(f"It hears itself say: {heard}", flush=True)


def _part(path: Path) -> dict[str, Any]:
    """A file as a content part of the OpenAI API."""
    kind = KINDS[path.suffix]
    data = base64.b64encode(path.read_bytes()).decode()
    if kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": data, "format": path.suffix[1:]}}
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{kind}/{path.suffix[1:]};base64,{data}"}}


if __name__ == "__main__":
    sys.exit(main())
