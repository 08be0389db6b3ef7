"""The engine process: an engine in a thread, behind a connection. Ends when the connection does, or its parent.

The first thread reads messages, one sends, one loads the model, one steps. Signals for the whole process group are
the parent's business: it ends this process by closing the connection.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from typing import Any

from sensorium.engine.link import Supervision
from sensorium.engine.memory import settle
from sensorium.engine.protocol import EngineFacts
from sensorium.engine.wire import Connection, Loading, LogLine, Outbox, Pulse, Start, StartFailed
from sensorium.errors import SensoriumError
from sensorium.types import Event, Failed

log = logging.getLogger(__name__)

IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE", "SIGUSR1", "SIGUSR2")
_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    """descriptor: our end of the socket pair. parent: its process id."""
    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    faulthandler.enable()
    _die_with(parent)
    Host(Connection(socket.socket(fileno=descriptor))).run()


def _die_with(parent: int) -> None:
    """Where the kernel can tell, do not outlive the parent even when this process hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class Host:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._link: Any = None
        self._facts: EngineFacts | None = None
        self._outbox = Outbox(connection, "sensorium-host-send", self._refused, self._pulse)

    def run(self) -> None:
        """Never returns."""
        try:
            while True:
                for message in self._connection.receive(lambda: None):
                    if isinstance(message, Start):
                        forward_logs(self._outbox, message.log_level)
                        threading.Thread(target=self._load, args=(message,), name="sensorium-load", daemon=True).start()
                    else:
                        self._link.send(message)
        except EOFError:  # the caller has closed, or is gone
            os._exit(0)
        except BaseException:
            log.critical("the engine process cannot go on", exc_info=True)
            self._exit(1)

    def _load(self, start: Start) -> None:
        try:
            # Only now: by then the first thread can see the caller go, and importing torch takes seconds.
            kind = importlib.import_module("sensorium.engine.thread_link").ThreadLink
            self._link = kind(start.config, self._deliver, self._progress, Supervision())
        except SensoriumError as error:
            self._outbox.put([StartFailed(error.code, error.message, error.param)])
            self._exit(1)
        except BaseException as error:
            log.critical("the engine could not be loaded", exc_info=True)
            self._outbox.put([StartFailed("engine_error", f"{type(error).__name__}: {error}", None)])
            self._exit(1)
        settle()
        self._outbox.put([self._link.facts])

    def _progress(self, phase: str, share: float) -> None:
        self._outbox.put([Loading(phase, share)])

    def _deliver(self, events: list[Event]) -> None:
        if self._link.state == "failed":  # the caller decides what becomes of its requests
            self._exit(1)
        self._outbox.put(events)

    def _pulse(self) -> Pulse | None:
        link = self._link
        return None if link is None else Pulse(link.stats(), link.stuck_s)

    def _refused(self, message: object, error: Exception) -> None:
        log.error("%s cannot be sent", type(message).__name__, exc_info=error)
        if isinstance(message, Event):
            self._outbox.put([Failed(message.request_id, "engine_error", "the engine's answer could not be sent")])

    def _exit(self, code: int) -> None:
        self._outbox.close()
        os._exit(code)


class _Forward(logging.Handler):
    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        self._outbox = outbox
        self._format = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        error = self._format.formatException(record.exc_info) if record.exc_info else None
        line = LogLine(record.name, record.levelno, record.getMessage(), error, record.created)
        self._outbox.put([line])


def forward_logs(outbox: Outbox, level: int) -> None:
    """Our records go to the caller, whose handlers know where they belong and in what form."""
    logger = logging.getLogger("sensorium")
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(_Forward(outbox))
