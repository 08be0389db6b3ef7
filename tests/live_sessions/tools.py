"""A server with a clock that stands still, and a client of /v1/duplex on a real socket."""

from __future__ import annotations

import asyncio
import json
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from server.live import Live, eventually
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from sensorium.config import ServerConfig
from sensorium.engine.client import EngineClient
from sensorium.server.app import build_app
from sensorium.server.run import DrainingServer, bind, http_server

RATE = 16_000
HEADER = struct.Struct("<BBHIQ")
SPEAKS: dict[str, Any] = {"listen_bias": 0.0, "force_listen_units": 0, "sampling": {"max_tokens": 4, "seed": 5}}
LISTENS: dict[str, Any] = {"listen_bias": 1e6, "force_listen_units": 10}


class ManualClock:
    """Moves only when `advance` is called, from any thread."""

    def __init__(self, start_s: float = 1000.0) -> None:
        self._now_s = start_s
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, asyncio.AbstractEventLoop, asyncio.Event]] = []

    def now(self) -> float:
        return self._now_s

    async def sleep_until(self, when_s: float) -> None:
        event = asyncio.Event()
        with self._lock:
            if when_s <= self._now_s:
                return
            entry = (when_s, asyncio.get_running_loop(), event)
            self._sleepers.append(entry)
        try:
            await event.wait()
        finally:
            with self._lock:
                if entry in self._sleepers:
                    self._sleepers.remove(entry)

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now_s += seconds
            due = [entry for entry in self._sleepers if entry[0] <= self._now_s]
            self._sleepers = [entry for entry in self._sleepers if entry not in due]
        for _, loop, event in due:
            loop.call_soon_threadsafe(event.set)


class LiveServer(Live):
    clock: ManualClock
    server: DrainingServer
    thread: threading.Thread

    def empty(self) -> bool:
        """Let the time run out in which clients may come back; whether all sessions end then."""

        def over() -> bool:
            self.clock.advance(31)
            return not self.service.num_sessions and not self.engine.num_sessions

        return eventually(over)

    @property
    def service(self) -> Any:
        return self.server._live


@contextmanager
def serve_live(engine: EngineClient, clock: Any = None, **settings: Any) -> Iterator[LiveServer]:
    """clock: in place of one that stands still."""
    config = ServerConfig(port=0, **({"live_max_len": 1024} | settings))
    clock = clock or ManualClock()
    listener = bind(config)
    server = http_server(build_app(engine, config, clock), config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="test-server")
    thread.start()
    live = LiveServer(listener.getsockname()[1], engine)
    for name, value in {"clock": clock, "server": server, "thread": thread}.items():
        object.__setattr__(live, name, value)
    try:
        yield live
    finally:
        server.should_exit = True
        thread.join()


class Client:
    """Speaks docs/duplex-protocol.md. `events` holds what has been read; sound is {"type": "sound", ...}."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.position = self.sequence = 0
        self.events: list[dict[str, Any]] = []

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def next(self) -> dict[str, Any]:
        data = self.socket.recv(timeout=120)
        if isinstance(data, bytes):
            kind, flags, stream, sequence, position = HEADER.unpack_from(data)
            assert (kind, stream) == (1, 0)
            event = {"type": "sound", "flags": flags, "sequence": sequence, "position": position, "pcm": data[16:]}
        else:
            event = json.loads(data)
        self.events.append(event)
        return event

    def until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next event like that; errors meanwhile are failures."""
        while True:
            event = self.next()
            if event["type"] == kind and all(event.get(name) == value for name, value in fields.items()):
                return event
            assert event["type"] not in ("error", "bye"), event

    def until_error(self) -> dict[str, Any]:
        while (event := self.next())["type"] != "error":
            assert event["type"] != "bye", event
        return event

    def until_bye(self) -> dict[str, Any]:
        while (event := self.next())["type"] != "bye":
            pass
        return event

    def start(self, **fields: Any) -> dict[str, Any]:
        self.say("start", **fields)
        return self.until("ready")

    def sound(self, pcm: np.ndarray, *, flags: int = 0, position: int | None = None) -> None:
        place = self.position if position is None else position
        self.socket.send(HEADER.pack(1, flags, 0, self.sequence, place) + pcm.astype("<i2").tobytes())
        self.position, self.sequence = place + len(pcm), self.sequence + 1

    def picture(self, data: bytes, *, kind: int = 2) -> None:
        self.socket.send(HEADER.pack(kind, 0, 0, 0, 0) + data)

    def second(self, seed: int = 0) -> dict[str, Any]:
        """Hear a second of noise; the unit that comes of it."""
        self.sound(noise(seed))
        return self.until("unit")

    def long_second(self, n: int) -> dict[str, Any]:
        """The unit of second n of a long session: speech half of the time, an interruption every 20 s, a picture every
        5 s."""
        if n % 5 == 0:
            self.picture(jpeg(n % 50))
        if n % 20 == 19:
            self.say("interrupt")
        self.sound(noise(n % 100) if n % 20 < 10 else noise(0, scale=1))
        return self.until("unit")

    def closed(self) -> int:
        """The code that the server closes with; what it says before is read."""
        try:
            while True:
                self.next()
        except ConnectionClosed as end:
            return end.rcvd.code if end.rcvd else 1006

    def kinds(self) -> list[str]:
        """What was told so far, in order, in short; runs of one kind count once."""
        found: list[str] = []
        for event in self.events:
            name = event["type"]
            if name == "turn":
                name = f"turn {event['event']}"
            elif name == "unit":
                name = f"unit {event['decision']}"
            elif name == "notice":
                name = f"notice {event['code']}"
            if not found or found[-1] != name:
                found.append(name)
        return found


@contextmanager
def duplex(live: Live, query: str = "", **options: Any) -> Iterator[Client]:
    url = f"ws://127.0.0.1:{live.port}/v1/duplex{query}"
    with connect(url, max_size=None, **{"subprotocols": ["sensorium.duplex.v1"], **options}) as socket:
        yield Client(socket)


def noise(seed: int = 0, samples: int = RATE, scale: float = 3000) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, samples).clip(-32768, 32767).astype(np.int16)


def jpeg(seed: int = 0, size: tuple[int, int] = (64, 48), kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
