"""How many sessions each key holds, of every door that keeps sessions: one key leaves places for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from sensorium.config import ServerConfig
from sensorium.errors import OverloadedError

DEFAULT_MOST, RETRY_S = 16, 5.0


class Seats:
    """Counts by key. `most` None is no bound: with one key, or none, there is nobody to leave places for."""

    def __init__(self, config: ServerConfig) -> None:
        several = len(config.api_keys) > 1
        self.most = config.max_sessions_per_key or (DEFAULT_MOST if several else None)
        self._sessions: Counter[str] = Counter()
        self._silent: Counter[str] = Counter()

    def take(self, key: str) -> None:
        """A session of this key begins. Raises OverloadedError where it has as many as it may."""
        if self.most is not None and self._sessions[key] >= self.most:
            raise self._full(f"this key has {self.most} sessions open")
        self._sessions[key] += 1

    def give_back(self, key: str) -> None:
        _less(self._sessions, key)

    @contextmanager
    def silent(self, key: str) -> Generator[None]:
        """While a connection has not said yet what it wants. Raises OverloadedError, as take does."""
        if self.most is not None and self._silent[key] >= self.most:
            raise self._full(f"{self.most} connections of this key have not begun a session yet")
        self._silent[key] += 1
        try:
            yield
        finally:
            _less(self._silent, key)

    def _full(self, reason: str) -> OverloadedError:
        error = OverloadedError(f"{reason}; try again in {RETRY_S:g} s", reason="key", retry_after_s=RETRY_S)
        error.code = "session_limit_reached"
        return error


def _less(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
