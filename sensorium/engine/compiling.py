"""Requests that wait for their grammar: outside the scheduler, so that nobody waits with them."""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, Future, wait

from sensorium.engine.grammar import GrammarCompiler, Matcher
from sensorium.engine.histogram import Buckets
from sensorium.errors import EngineError, SensoriumError
from sensorium.types import Request

log = logging.getLogger(__name__)
_POLL_S = 0.01


class Compiling:
    """Belongs to the engine's thread; the compiler has its own."""

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._waiting: dict[str, tuple[Request, Future[Matcher]]] = {}

    @property
    def seconds(self) -> Buckets:
        """How long compiling takes; see EngineStats.compile_s."""
        return self._compiler.seconds.freeze()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, request: Request, ends: frozenset[int]) -> None:
        """ends: ids that may end the answer."""
        wanted = request.sampling.structured_outputs
        assert wanted is not None
        self._waiting[request.id] = (request, self._compiler.submit(wanted, ends))

    def discard(self, request_id: str) -> Request | None:
        """Forget a request; what is being compiled for it is compiled for nobody."""
        found = self._waiting.pop(request_id, None)
        if found is None:
            return None
        found[1].cancel()
        return found[0]

    def take(self, *, wait: bool) -> list[tuple[Request, Matcher | SensoriumError]]:
        """Requests whose compilation has ended, and how. wait: up to 10 ms for one."""
        if wait:
            _wait_for_one([future for _, future in self._waiting.values()])
        done = [(request, future) for request, future in self._waiting.values() if future.done()]
        for request, _ in done:
            del self._waiting[request.id]
        return [(request, _outcome(future)) for request, future in done]

    def clear(self) -> list[str]:
        """Forget all requests; their ids."""
        ids = list(self._waiting)
        for request_id in ids:
            self.discard(request_id)
        return ids

    def close(self) -> list[str]:
        """clear(), and end the compiler; it starts again when it is needed."""
        ids = self.clear()
        self._compiler.close()
        return ids


def _wait_for_one(futures: list[Future[Matcher]]) -> None:
    wait(futures, timeout=_POLL_S, return_when=FIRST_COMPLETED)


def _outcome(future: Future[Matcher]) -> Matcher | SensoriumError:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, SensoriumError):
        return error
    log.error("a grammar could not be compiled", exc_info=error)
    return EngineError("the answer format could not be compiled; the server log has the details")
