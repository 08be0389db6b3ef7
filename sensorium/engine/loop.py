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
_MOMENT_S, _NAP_S = 0.003, 0.001
"""So long are fewer of them waited for; and so long passes until the next look."""


class EngineLoop:
    """Runs one Engine until close(). `ended` is called last, with the reason where it was not close()."""

    def __init__(self, engine: Engine, deliver: Deliver, ended: Callable[[str | None], None]) -> None:
        self.engine = engine
        self._deliver = deliver
        self._ended = ended
        self.coming: Callable[[], int] = lambda: 0
        """How many callers of this process are preparing requests that they will put."""
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
        """Let those come together who are about to, until they fill a step.

        The first of 64 pictures, encoded alone by a thread that 63 others kept from the interpreter, took 47 ms of all
        their 387, and the others came in batches of sizes for which nothing had been recorded.
        """
        start, most, waits = time.monotonic(), _MOMENT_S, self.coming() > 0
        while waits and time.monotonic() - start < most and not (self._closing or self._fills_a_step()):
            coming = self.coming()
            waits, most = coming > 0, _GATHER_S if coming >= _MANY else most
            time.sleep(_NAP_S)

    def _fills_a_step(self) -> bool:
        asked = sum(len(message.prompt.ids) for message in list(self.engine.inbox) if isinstance(message, Request))
        return asked >= self.engine.scheduler.max_num_batched_tokens

    def _run(self) -> None:
        engine, reason = self.engine, None
        try:
            while not self._closing:
                if not engine.has_work:
                    self._rest()
                    continue
                if not (engine.scheduler.has_work or engine.speakers.has_work or engine.sessions):
                    self._gather()
                events = engine.step()
                self._progress_s = time.monotonic()
                self._deliver(events)
        except BaseException as error:  # a defect of ours: nobody may be left waiting
            log.critical("the engine stopped", exc_info=error)
            reason = f"the engine stopped ({type(error).__name__}); see the server log"
        ended = self._ended
        del self._ended, self._deliver  # a loop that is over keeps neither its owner nor what its owner holds
        ended(reason)
