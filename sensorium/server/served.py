"""The engine as the server sees it: perhaps still loading, under the name that clients use."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from sensorium import __version__
from sensorium.errors import EngineDeadError, NotFoundError

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

STALL_S = 30.0
"""An engine that has work and finishes no step for so long counts as hung."""


class Served:
    """Holds the future engine. `created` is when serving began, in seconds since the epoch."""

    def __init__(self, engine: Future[EngineClient], names: str | tuple[str, ...] | None) -> None:
        self._engine = engine
        self._names = (names,) if isinstance(names, str) else names or ()
        self.created = int(time.time())
        self._last_steps = -1
        self._unchanged_since = time.monotonic()

    def client(self) -> EngineClient:
        """The engine. Raises EngineDeadError while there is none."""
        state = self.state()
        if state == "loading":
            raise EngineDeadError("the model is still loading")
        if state == "failed":
            raise EngineDeadError("the model could not be loaded")
        return self._engine.result()

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model. Answers carry the first."""
        return self._names or (self.client().model_name,)

    @property
    def name(self) -> str:
        return self.names[0]

    def check_name(self, name: str | None) -> None:
        """Raises NotFoundError for a name that is none of ours; no name means the model there is."""
        if name and name not in self.names:
            known = ", ".join(map(repr, self.names))
            raise NotFoundError(f"the model {name[:200]!r} does not exist; this server has {known}", param="model")

    @property
    def fingerprint(self) -> str:
        return f"sensorium-{__version__}"

    def state(self) -> str:
        """ok, loading, failed (to load), dead, or stalled: what /health says."""
        if not self._engine.done():
            return "loading"
        if self._engine.cancelled() or self._engine.exception() is not None:
            return "failed"
        client = self._engine.result()
        if not client.is_alive:
            return "dead"
        steps, now = client.stats().steps, time.monotonic()
        if steps != self._last_steps or client.num_requests == 0:
            self._last_steps, self._unchanged_since = steps, now
        return "stalled" if now - self._unchanged_since > STALL_S else "ok"
