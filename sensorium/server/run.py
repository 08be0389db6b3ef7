"""Runs the server: binds, loads behind a /health that says so, serves, drains, stops."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import math
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from sensorium.config import ServerConfig
from sensorium.engine.memory import settle
from sensorium.envs import read_environment
from sensorium.errors import EngineDeadError, SensoriumError
from sensorium.server.app import build_app
from sensorium.server.guard import is_loopback
from sensorium.server.live.service import LiveService
from sensorium.server.protocol import BoundedProtocol, Entrance
from sensorium.server.realtime.line import MAX_MESSAGE
from sensorium.server.served import Served
from sensorium.server.socket_protocol import BoundedWebSocket
from sensorium.server.tracing import Tracer

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

log = logging.getLogger(__name__)

EXAMPLE_KEYS = frozenset({"empty", "none", "default", "changeme", "sk-1234", "test"})
SIGNALS = (signal.SIGTERM, signal.SIGINT)
CUT = 75
"""Exit code where requests were cut off: EX_TEMPFAIL of sysexits.h."""
FLUSH_S = 1
"""After the last request has ended: for clients to take what they have been sent."""


class BindError(SensoriumError):
    """The server cannot listen where it was asked to."""

    code = "bind_failed"


def bind(config: ServerConfig) -> socket.socket:
    """The listening socket. Refuses to be reachable from other machines without a key."""
    if not (config.api_keys or config.insecure or is_loopback(config.host)):
        raise BindError(f"{config.host} is reachable from other machines: set an API key, or allow that explicitly")
    if not (config.insecure or is_loopback(config.host)) and (
        known := sorted(set(map(str.lower, config.api_keys)) & EXAMPLE_KEYS)
    ):
        raise BindError(
            f"{config.host} is reachable from other machines, and {known[0]!r} is a key that everybody knows"
        )
    with contextlib.ExitStack() as cleanup:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[
                0
            ]
            listener = cleanup.enter_context(socket.socket(family, kind, protocol))
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError as error:
            reason = "it is in use already" if error.errno == errno.EADDRINUSE else error.strerror
            raise BindError(f"cannot listen on {config.host}:{config.port}: {reason}") from None
        cleanup.pop_all()
    return listener


def http_server(app: ASGIApp, config: ServerConfig) -> DrainingServer:
    """uvicorn, bounded: what it leaves open by default (slow or endless heads, proxy headers) is closed."""
    # An application of another kind has no engine to wait for.
    state = app.state if isinstance(app, Starlette) else None
    served, tracer = (state.served, state.tracer) if state is not None else (None, None)
    doorstep = state.doorstep if state is not None else None
    protocol: Any = functools.partial(BoundedProtocol, doorstep=doorstep, entrance=Entrance())
    settings = uvicorn.Config(
        app,
        http=protocol,
        ws=BoundedWebSocket,
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=math.ceil(read_environment().http_timeout_keep_alive),
        root_path=config.root_path.rstrip("/"),
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        ssl_ca_certs=None if config.ssl_ca_certs is None else str(config.ssl_ca_certs),
        ssl_cert_reqs=ssl.CERT_NONE if config.ssl_ca_certs is None else ssl.CERT_REQUIRED,
        timeout_graceful_shutdown=FLUSH_S,
    )
    live = None if state is None else state.live
    return DrainingServer(settings, served, config.drain_s, tracer, live)


def run_server(
    config: ServerConfig,
    load: Callable[[], EngineClient],
    *,
    on_bound: Callable[[str], None] | None = None,
    on_ready: Callable[[EngineClient], None] | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT, then finish what runs for at most `drain_s`. A second signal exits at once.

    The socket is bound first: a port in use is known before `load`, called in a thread, spends its time. on_bound is
    told the address as a URL, on_ready the engine. Returns the exit code: 0, or CUT where requests had to be cut off.
    Raises what loading raised, and EngineDeadError when the engine is given up.
    """
    listener = bind(config)
    host, port = listener.getsockname()[:2]
    engine: Future[EngineClient] = Future()
    app = build_app(engine, config)
    for route in app.routes:
        path, methods = getattr(route, "path", ""), getattr(route, "methods", None) or ("WEBSOCKET",)
        log.info("Route: %s, Methods: %s", path, ", ".join(sorted(methods)))
    server = http_server(app, config)
    over = threading.Event()

    def loading() -> None:
        try:
            client = load()
        except BaseException as error:
            engine.set_exception(error)
            server.should_exit = True
            return
        settle()
        engine.set_result(client)
        if over.is_set():
            client.close()
        elif on_ready is not None:
            on_ready(client)

    # Before uvicorn sets them itself, a signal would kill the process without a word.
    earlier = {sig: signal.signal(sig, handler) for sig, handler in _signal_handlers(server).items()}
    if on_bound is not None:
        scheme = "https" if config.ssl_certfile else "http"
        on_bound(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
    threading.Thread(target=loading, name="sensorium-load", daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        for sig, handler in earlier.items():
            signal.signal(sig, handler)
        listener.close()
        over.set()
        if engine.done() and engine.exception() is None:
            engine.result().close()
    if server.failure:
        raise EngineDeadError(server.failure)
    if engine.done():
        engine.result()  # raises what loading raised
    return CUT if server.num_cut else 0


def _signal_handlers(server: DrainingServer) -> dict[signal.Signals, Any]:
    """SIGHUP ends a server whose terminal is closed; without a terminal it is ignored, as SIGUSR1 and SIGUSR2 are."""
    handlers: dict[signal.Signals, Any] = dict.fromkeys(SIGNALS, server.handle_exit)
    for name in ("SIGUSR1", "SIGUSR2", "SIGHUP"):
        if hasattr(signal, name):
            ends = name == "SIGHUP" and sys.stdin is not None and sys.stdin.isatty()
            handlers[signal.Signals[name]] = server.handle_exit if ends else signal.SIG_IGN
    return handlers


class DrainingServer(uvicorn.Server):
    """uvicorn that drains: asked to stop it still answers, with 503, until what runs is finished or drain_s is over."""

    def __init__(
        self,
        settings: uvicorn.Config,
        served: Served | None,
        drain_s: float,
        tracer: Tracer | None = None,
        live: LiveService | None = None,
    ) -> None:
        super().__init__(settings)
        self._live = live
        self._tracer = tracer
        self._served = served
        self._drain_s = drain_s
        self._asked_s: float | None = None
        self._cut_s: float | None = None
        self.num_cut = 0
        """Requests that were running when drain_s was over."""
        self.failure = ""
        """Why the engine was given up; empty where it was not."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._asked_s is not None:
            if (client := self._client) is not None:
                client.kill()
            os._exit(128 + sig)
        log.info("%s: finishing what runs, for at most %g s", signal.Signals(sig).name, self._drain_s)
        self._asked_s = time.monotonic()
        if self._served is not None:
            self._served.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    @property
    def _client(self) -> EngineClient | None:
        return self._served.loaded if self._served is not None else None

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._is_over()

    def _is_over(self) -> bool:
        client = self._client
        if client is not None and client.state == "failed":
            self.failure = client.reason
            return True
        if self._asked_s is None:
            return False
        if client is None:
            return True
        client.drain()
        if self._live is not None:
            self._live.drain()
        if self._cut_s is None and client.num_requests == 0 and (self._live is None or self._live.is_idle):
            return True
        if client.is_alive and self._cut_s is None and time.monotonic() - self._asked_s < self._drain_s:
            return False
        if self._cut_s is None:
            self._cut_s = time.monotonic()
            self.num_cut = client.cut()
            log.warning("%d requests are cut off", self.num_cut)
        # Those in the middle of a session are told, if they still read.
        return self._live is None or self._live.is_idle or time.monotonic() - self._cut_s > FLUSH_S
