"""The engine in a thread of the caller's process: for LLM, for tests, for programs that embed an engine."""

from __future__ import annotations

import os
import sys
import threading

from sensorium.config import EngineConfig
from sensorium.engine.checkpoint import Progress
from sensorium.engine.link import Deliver, LinkState, Supervision
from sensorium.engine.loading import load
from sensorium.engine.loop import EngineLoop
from sensorium.engine.protocol import AddVoice, Control, EngineFacts, EngineStats, OpenSession, OpenSpeech
from sensorium.engine.turns import Turns
from sensorium.errors import EngineDeadError, UnsupportedError
from sensorium.types import Event, Request

_SWITCH_S = 0.001


def _nobody(events: list[Event]) -> None:
    """There is nobody to deliver to."""


class ThreadLink:
    """Loads in the constructor. `loaded` holds the engine and the model itself, until it is closed: for tests and
    benchmarks."""

    pid = os.getpid()

    def __init__(self, config: EngineConfig, deliver: Deliver, progress: Progress | None, _: Supervision) -> None:
        self.loaded = load(config, progress)
        self.facts: EngineFacts = self.loaded.facts()
        self.processor = self.loaded.processor
        self.reason = ""
        self.state: LinkState = "ready"
        self._deliver = deliver
        self._lock = threading.Lock()
        # Behind every operation on the device the engine's thread asks for the interpreter again; while other threads
        # are busy, as with preparing media, it waits so long each time. Python's own 5 ms are longer than most steps.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        self._last = EngineStats()
        self._loop: EngineLoop | None = EngineLoop(self.loaded.engine, deliver, self._ended)

    @property
    def stuck_s(self) -> float:
        loop = self._loop
        return loop.stuck_s if loop is not None and self.state == "ready" else 0.0

    def stats(self) -> EngineStats:
        loop = self._loop
        return loop.engine.stats if loop is not None else self._last

    def send(self, message: Request | Control) -> None:
        with self._lock:  # nothing may enter the inbox once it has been emptied for good
            if self.state == "ready" and self._loop is not None:
                self._loop.put(message)
            elif isinstance(message, Request | OpenSession | OpenSpeech | AddVoice):
                raise EngineDeadError(self.reason)

    def expect(self, turns: Turns) -> None:
        if (loop := self._loop) is not None:
            loop.engine.turns = turns

    def sleep(self, *, wait: bool = False) -> None:
        raise UnsupportedError("an engine in a thread does not sleep; close it, and make another one later")

    def wake(self) -> None:
        """It never sleeps."""

    def kill(self) -> None:
        """A thread cannot be killed."""

    def close(self) -> None:
        """Free the engine too: whoever still keeps the client, as servers keep each other's parts, keeps no model."""
        if (loop := self._loop) is None:
            return
        loop.close()
        with self._lock:
            if self._loop is not None:
                self._last = loop.engine.stats
                self._loop = None
                del self.loaded

    def _ended(self, reason: str | None) -> None:
        with self._lock:
            self.reason = reason or "the engine is closed"
            self.state = "closed" if reason is None else "failed"
        self._deliver(self.loaded.engine.fail_all(self.reason))
        self._deliver = _nobody  # whoever owns the link is not kept by it
