"""`sensorium talk`: full duplex in the terminal, with the sound card, or with files in and out."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from sensorium.cli.loading import LoadingBar, with_voice
from sensorium.cli.options import add_flags, build
from sensorium.cli.parser import Parser
from sensorium.config import EngineConfig, MediaLimits, ServerConfig
from sensorium.envs import read_environment
from sensorium.errors import EngineError, RequestError

RATE, SPOKEN_RATE = 16_000, 24_000
HEADER = struct.Struct("<BBHIQ")
SOUND, LAST = 1, 2
KINDS = {(0, b"\xff\xd8\xff"): 2, (8, b"WEBP"): 3, (0, b"\x89PNG"): 5}
"""What a file has at a place, and its kind in the protocol."""
MOST_AHEAD_S = 50.0
MOST_SILENT_UNITS = 30
"""Seconds that a file is followed by, while the model still speaks."""
HELP = "Speak. A typed line is a message, an empty one interrupts; Ctrl-C leaves."


class Speaker(Protocol):
    """Takes what is said: 16-bit samples at 24 kHz."""

    def play(self, unit_end: int, pcm: bytes) -> None:
        """unit_end: samples heard, at 16 kHz, when the unit was complete that this belongs to."""
        ...

    def flush(self) -> None:
        """What was not played yet is not wanted any more."""
        ...


def add_arguments(parser: Parser) -> None:
    parser.add_model()
    parser.add_argument("--url", help="talk to a server instead, such as http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="", metavar="TEXT", help="key for --url; else SENSORIUM_API_KEY")
    parser.add_argument("--instructions", default=None, metavar="TEXT", help="system prompt")
    parser.add_argument("--voice", default=None, metavar="NAME", help="one of the server's voices")
    parser.add_argument("--input", default=None, metavar="FILE", help="a recording in place of the microphone")
    parser.add_argument("--output", default=None, metavar="FILE", help="WAVE file for what is said, with --input")
    parser.add_argument("--image", default=None, metavar="FILE", help="a picture shown with every second")
    add_flags(parser, EngineConfig, title="engine, without --url")


def run(parser: Parser, given: dict[str, Any]) -> int:
    if given["output"] and not given["input"]:
        raise RequestError("--output needs --input: what is said to a microphone is played", param="output")
    sound = None if given["input"] is None else read_sound(Path(given["input"]))
    picture = None if given["image"] is None else read_picture(Path(given["image"]))
    with contextlib.ExitStack() as stack:
        url, key = given["url"], given["api_key"] or read_environment().api_key or ""
        if not url:
            url = stack.enter_context(serving(given))
        talk = stack.enter_context(connected(url, key))
        talk.start(given)
        if sound is not None:
            from sensorium.cli.talk_sound import WaveFile

            written = WaveFile()
            talk.play_to(written)
            talk.recording(sound, picture)
            if given["output"]:
                written.save(Path(given["output"]))
        else:
            from sensorium.cli.talk_sound import SoundCard

            card = stack.enter_context(SoundCard())
            talk.play_to(card)
            print(HELP, file=sys.stderr)
            talk.microphone(card, picture)
    return 0


def read_sound(path: Path) -> bytes:
    """A recording as 16-bit samples at 16 kHz."""
    import numpy as np

    from sensorium.media import audio

    media = audio.from_bytes(path.read_bytes(), str(path), MediaLimits(max_audio_s=24 * 3600))
    return (np.clip(media.data, -1, 1) * 32767).astype("<i2").tobytes()


def read_picture(path: Path) -> bytes:
    """A binary frame of the protocol."""
    data = path.read_bytes()
    kind = next((kind for (place, magic), kind in KINDS.items() if data.startswith(magic, place)), None)
    if kind is None:
        raise RequestError(f"{path}: give a JPEG, WebP or PNG picture", param="image")
    return HEADER.pack(kind, 0, 0, 0, 0) + data


@contextlib.contextmanager
def serving(given: dict[str, Any]) -> Iterator[str]:
    """A server in this process, on a port of its own, for this conversation only."""
    from sensorium.engine.client import EngineClient
    from sensorium.server.app import build_app
    from sensorium.server.run import bind, http_server

    given = with_voice(given)
    config = build(EngineConfig, given, model=given["model"], limits=build(MediaLimits, given))
    with LoadingBar(config.use_tqdm_on_load) as bar:
        engine = EngineClient(config, bar.update)
    with engine:
        engine.live("")  # says at once where the model holds no live sessions
        settings = ServerConfig(port=0, access_log=False)
        listener = bind(settings)
        server = http_server(build_app(engine, settings), settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def connected(url: str, key: str) -> Iterator[Talk]:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    address = url.rstrip("/").removesuffix("/v1").replace("http", "ws", 1) + "/v1/duplex"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        made = connect(address, max_size=None, subprotocols=["sensorium.duplex.v1"], additional_headers=headers)  # type: ignore[list-item]
    except OSError as error:
        raise EngineError(f"--url: no server answers at {address}: {error}") from None
    except InvalidStatus as error:
        raise EngineError(
            _reason(error.response.body or b"", f"{address} answers {error.response.status_code}")
        ) from None
    with made:
        yield Talk(made)


def _reason(body: bytes, otherwise: str) -> str:
    """Why a server refuses, in its own words where it has any."""
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return otherwise


class Talk:
    """One session over a socket of /v1/duplex; prints what is said."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._speaker: Speaker | None = None
        self._sent = self._sequence = 0
        self._place = 0
        """Samples heard at the end of the unit before."""
        self.is_speaking = False
        self.num_units = 0

    def start(self, given: dict[str, Any]) -> None:
        options = {name: given[name] for name in ("instructions", "voice") if given[name] is not None}
        if given["input"] is not None:
            options["force_listen_units"] = 0  # a recording has no first seconds that only get the session going
        self._say("start", **options)
        while (event := self._next())["type"] != "ready":
            if event["type"] == "queued":
                eta = f"{event['eta_s']:.0f} s"
                print(f"{event['position']} in the queue, about {eta} to go", file=sys.stderr)
        if not event["capabilities"]["speech"]:
            print("this model does not speak: its words are shown", file=sys.stderr)

    def play_to(self, speaker: Speaker) -> None:
        self._speaker = speaker

    # ---- both ways ------------------------------------------------------------------------------------------------

    def recording(self, pcm: bytes, picture: bytes | None) -> None:
        """Let it hear a file, second by second, and silence behind it while it still speaks."""
        began = time.monotonic()
        seconds = -(-len(pcm) // (2 * RATE))
        for number in range(seconds + MOST_SILENT_UNITS):
            piece = pcm[number * 2 * RATE : (number + 1) * 2 * RATE].ljust(2 * RATE, b"\0")
            while number - (time.monotonic() - began) > MOST_AHEAD_S:
                time.sleep(0.1)
            if picture is not None:
                self._socket.send(picture)
            self.hear(piece)
            while self._next()["type"] != "unit":
                pass
            if number >= seconds - 1 and not self.is_speaking:
                break
        self._end()

    def microphone(self, card: Any, picture: bytes | None) -> None:
        """Until Ctrl-C, or the end of the session."""
        sending = threading.Thread(target=self._listen, args=(card, picture), daemon=True)
        typing = threading.Thread(target=self._type, daemon=True)
        sending.start()
        typing.start()
        try:
            while self._next()["type"] != "bye":
                pass
        except KeyboardInterrupt:
            self._end()

    def hear(self, pcm: bytes) -> None:
        self._socket.send(HEADER.pack(SOUND, 0, 0, self._sequence, self._sent) + pcm)
        self._sequence += 1
        self._sent += len(pcm) // 2

    def _listen(self, card: Any, picture: bytes | None) -> None:
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):
            shown = -RATE
            for piece in card.heard():
                if picture is not None and self._sent - shown >= RATE:
                    shown = self._sent
                    self._socket.send(picture)
                self.hear(piece)

    def _type(self) -> None:
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed, ValueError):
            for line in sys.stdin:
                if line.strip():
                    self._say("text", text=line.strip())
                else:
                    self._say("interrupt")

    def _end(self) -> None:
        self._say("stop")
        while self._next()["type"] != "bye":
            pass
        print()

    def _say(self, kind: str, **fields: Any) -> None:
        self._socket.send(json.dumps({"type": kind, **fields}))

    def _next(self) -> dict[str, Any]:
        """The next message; it has been shown and played."""
        from websockets.exceptions import ConnectionClosed

        try:
            data = self._socket.recv()
        except ConnectionClosed as error:
            raise EngineError(f"the server hung up: {error}") from None
        if isinstance(data, bytes):
            if self._speaker is not None:
                self._speaker.play(self._place, data[HEADER.size :])
            return {"type": "sound"}
        event = json.loads(data)
        self._show(event)
        return event

    def _show(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "text":
                print(event["delta"], end="", flush=True)
            case "unit":
                self._place = event["in_samples"]
                self.num_units += 1
            case "turn":
                self.is_speaking = event["event"] == "start"
                if event["event"] == "cancelled" and self._speaker is not None:
                    self._speaker.flush()
                print("" if event["event"] == "start" else os.linesep, end="", flush=True)
            case "notice" if event["code"] in ("late", "frames_dropped", "gap"):
                print(f"[{event['message']}]", file=sys.stderr)
            case "error":
                if event["fatal"]:
                    raise EngineError(event["message"])
                print(f"[{event['message']}]", file=sys.stderr)
            case "bye" if event["reason"] != "stopped":
                print(f"[the session ended: {event['reason']}]", file=sys.stderr)
            case _:
                pass
