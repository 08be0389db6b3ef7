"""The engine's thread: steps while there is work, sleeps while there is none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sensorium.engine.engine import Engine
from sensorium.engine.link import Deliver
from sensorium.engine.memory import give_back
from sensorium.engine.protocol import Control
from sensorium.types import Request

log = logging.getLogger(__name__)
_IDLE_S = 3.0
"""After so long without work the engine's thread gives unused memory back, once."""
_QUIET_S = 0.5
"""After so long without work it rehearses, until there is some: whoever comes then waits for a part of a rehearsal."""
_MANY, _GATHER_S = 4, 0.05
"""So many callers about to come are waited for so long at most."""
_MOMENT_S = 0.003
"""So long are fewer of them waited for."""


class EngineLoop:
    """Runs one Engine until close(). `ended` is called last, with the reason where it was not close()."""

    def __init__(self, engine: Engine, deliver: Deliver, ended: Callable[[str | None], None]) -> None:
        self.engine = engine
        self._deliver = deliver
        self._ended = ended
        self._wake = threading.Event()
        self._closing = False
        self._progress_s = time.monotonic()
        engine.wake = self._wake.set
        self._thread = threading.Thread(target=self._run, name="sensorium-engine", daemon=True)
        self._thread.start()

    def put(self, message: Request | Control) -> None:
        """Queue for the next step. From any thread."""
        if not self.engine.has_work:
            self._progress_s = time.monotonic()
        self.engine.inbox.append(message)
        self._wake.set()
        self.engine.turns.came()

    @property
    def stuck_s(self) -> float:
        return time.monotonic() - self._progress_s if self.engine.has_work else 0.0

    def close(self) -> None:
        """Stop after the step that runs, and wait for that."""
        self._closing = True
        self._wake.set()
        self._thread.join()

    def _rest(self) -> None:
        """Until there may be work."""
        if not self._wake.wait(_QUIET_S):
            while not self._wake.is_set() and self.engine.runner.rehearse():
                pass
            if not self._wake.wait(_IDLE_S - _QUIET_S):
                give_back()
                self._wake.wait()
        self._wake.clear()

    def _gather(self) -> None:
        """Let those come together who are about to, until there are enough.

        The first of 64 pictures, encoded alone by a thread that 63 others kept from the interpreter, took 47 ms of all
        their 387, and the others came in batches of sizes for which nothing had been recorded.
        """
        start, most_s, engine = time.monotonic(), _MOMENT_S, self.engine

        def are_enough() -> bool:
            nonlocal most_s
            if self._closing or engine.has_enough():
                return True
            if engine.turns.coming() >= _MANY:
                most_s = _GATHER_S
            return time.monotonic() - start >= most_s

        engine.turns.gather(are_enough)
        if not engine.runner.runs_ahead:
            engine.turns.let_go()

    def _run(self) -> None:
        engine, reason = self.engine, None
        try:
            while not self._closing:
                if not engine.has_work:
                    self._rest()
                    continue
                if not (engine.scheduler.has_work or engine.speakers.has_work or engine.sessions):
                    self._gather()
                try:
                    events = engine.step()
                finally:
                    engine.turns.let_go()
                self._progress_s = time.monotonic()
                self._deliver(events)
        except BaseException as error:  # a defect of ours: nobody may be left waiting
            log.critical("the engine stopped", exc_info=error)
            reason = f"the engine stopped ({type(error).__name__}); see the server log"
        ended = self._ended
        del self._ended, self._deliver  # a loop that is over keeps neither its owner nor what its owner holds
        ended(reason)
