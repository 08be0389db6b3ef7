"""Runs the server: binds, loads behind a /health that says so, serves, drains, stops."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp

from sensorium.config import ServerConfig
from sensorium.errors import SensoriumError
from sensorium.server.app import build_app
from sensorium.server.guard import is_loopback
from sensorium.server.protocol import BoundedProtocol

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class BindError(SensoriumError):
    """The server cannot listen where it was asked to."""

    code = "bind_failed"


def bind(config: ServerConfig) -> socket.socket:
    """The listening socket. Refuses to be reachable from other machines without a key."""
    if not (config.api_keys or config.insecure or is_loopback(config.host)):
        raise BindError(f"{config.host} is reachable from other machines: set an API key, or allow that explicitly")
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


def http_server(app: ASGIApp, config: ServerConfig) -> uvicorn.Server:
    """uvicorn, bounded: what it leaves open by default (slow or endless heads, proxy headers) is closed."""
    settings = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=math.ceil(config.drain_s),
    )
    return _Server(settings)


def run_server(
    config: ServerConfig,
    load: Callable[[], EngineClient],
    *,
    on_bound: Callable[[str], None] | None = None,
    on_ready: Callable[[EngineClient], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what runs for at most `drain_s`. A second signal exits at once.

    The socket is bound first: a port in use is known before `load`, called in a thread, spends its time. on_bound is
    told the address as a URL, on_ready the engine.
    """
    listener = bind(config)
    host, port = listener.getsockname()[:2]
    engine: Future[EngineClient] = Future()
    server = http_server(build_app(engine, config), config)

    def loading() -> None:
        try:
            client = load()
        except BaseException as error:
            engine.set_exception(error)
            server.should_exit = True
            return
        engine.set_result(client)
        if on_ready is not None:
            on_ready(client)

    # Before uvicorn sets them itself, a signal would kill the process without a word.
    earlier = [signal.signal(sig, server.handle_exit) for sig in SIGNALS]
    if on_bound is not None:
        on_bound(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    threading.Thread(target=loading, name="sensorium-load", daemon=True).start()
    try:
        server.run(sockets=[listener])
    finally:
        for sig, handler in zip(SIGNALS, earlier, strict=True):
            signal.signal(sig, handler)
        listener.close()
        if engine.done() and engine.exception() is None:
            engine.result().close()
    if engine.done():
        engine.result()  # raises what loading raised


class _Server(uvicorn.Server):
    """uvicorn with our signals: the first drains and ends in a normal return, the second exits."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        log.info("%s: finishing what runs", signal.Signals(sig).name)
        self.should_exit = True
