"""The engine as the server sees it: perhaps still loading, under the name that clients use."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from sensorium import __version__
from sensorium.config import ServerConfig
from sensorium.envs import read_environment
from sensorium.errors import EngineDeadError, NotFoundError, ShuttingDownError

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient


class Served:
    """Holds the future engine. `created` is when serving began, in seconds since the epoch."""

    def __init__(self, engine: Future[EngineClient], config: ServerConfig) -> None:
        self._engine = engine
        self._loaded: EngineClient | None = None
        self._config = config
        names = config.served_model_name
        self._names = (names,) if isinstance(names, str) else names or ()
        self.environment = read_environment()
        self.created = int(time.time())
        self.draining = False
        """Set when the server is asked to stop: nothing new is taken from then on."""

    @property
    def loaded(self) -> EngineClient | None:
        """The engine in whatever state, once it has been loaded."""
        if self._loaded is None and self._engine.done():
            failed = self._engine.cancelled() or self._engine.exception() is not None
            self._loaded = None if failed else self._engine.result()
        return self._loaded

    def client(self) -> EngineClient:
        """The engine. Raises EngineDeadError while there is none."""
        if self.draining:
            raise ShuttingDownError("the server is shutting down")
        if not self._engine.done():
            raise EngineDeadError("the model is still loading")
        if self.loaded is None:
            raise EngineDeadError("the model could not be loaded")
        return self.loaded

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model. Answers carry the first."""
        return self._names or (self.client().model_name,)

    def name_of(self, client: EngineClient) -> str:
        """The name for its numbers, also while no request is taken."""
        return self._names[0] if self._names else client.model_name

    @property
    def name(self) -> str:
        return self.names[0]

    def check_name(self, name: str | None) -> None:
        """Raises NotFoundError for a name that is none of ours; no name means the model there is."""
        if name and not self.environment.skip_model_name_validation and name not in self.names:
            known = ", ".join(map(repr, self.names))
            raise NotFoundError(f"the model {name[:200]!r} does not exist; this server has {known}", param="model")

    @property
    def fingerprint(self) -> str | None:
        """system_fingerprint of answers, as the server's fingerprint_mode wants it."""
        mode = self._config.fingerprint_mode
        if mode == "none":
            return None
        if mode == "custom":
            return self._config.fingerprint_value
        facts = self.client().facts
        full = f"sensorium-{__version__}-{facts.dtype}-{facts.device.partition(':')[0]}"
        return full if mode == "full" else hashlib.sha256(full.encode()).hexdigest()[:16]

    def state(self) -> str:
        """ok, loading, restarting, stalled, draining or failed: what /health says. Anything but ok is not ready."""
        if self.draining:
            return "draining"
        if not self._engine.done():
            return "loading"
        state = self.loaded.state if self.loaded is not None else "failed"
        return {"ready": "ok", "closed": "failed"}.get(state, state)
