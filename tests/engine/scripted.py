"""A session policy that says what its options tell it to, and remembers what it was asked."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from small import REST_S

from sensorium.engine.engine import Engine
from sensorium.engine.protocol import AppendUnit, OpenSession
from sensorium.errors import RequestError
from sensorium.models.base import Tokenizer
from sensorium.types import Decision, Event, Outcome, Prompt, SamplingParams, Splice, Unit

SEEN: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
"""Name of a policy -> the rows of logits [V] it was asked with."""


class Scripted:
    """options: name; of units: say (ids fed one at a time), close (ids), defer, flush (numbers of decisions), splices
    ([start, stop, ids]), refuse, raise.

    The first id said is not collected, as in full duplex. Without `say` it takes the likeliest id, `greedy` times.
    """

    max_feed = 64

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, options: Mapping[str, Any]) -> None:
        unknown = set(options) - {"name"}
        if unknown:
            raise RequestError(f"{min(unknown)}: unknown option", param=min(unknown))
        self.name = options.get("name", "")
        self.calls: list[tuple[Any, ...]] = []
        self._unit: Mapping[str, Any] = {}
        self._fed: list[int] = []

    def opened(self, length: int) -> None:
        self.calls.append(("opened", length))

    def begin(self, unit: Unit, at: int) -> None:
        if unit.options.get("refuse"):
            raise RequestError("refuse: as asked", param="refuse")
        self.calls.append(("begin", unit.index, at))
        self._unit, self._fed = unit.options, []

    def decide(self, logits: torch.Tensor) -> Decision:
        SEEN[self.name].append(logits.clone())
        if self._unit.get("raise"):
            raise ZeroDivisionError
        say, done = self._unit.get("say"), len(self._fed)
        if done == (self._unit.get("greedy", 0) if say is None else len(say)):
            return Decision(tuple(self._unit.get("close", ())), end=True, defer=self._unit.get("defer", True))
        self._fed.append(int(logits.argmax()) if say is None else say[done])
        return Decision((self._fed[-1],), collect=done > 0, flush=done in self._unit.get("flush", ()))

    def end(self, length: int) -> Outcome:
        self.calls.append(("end", length))
        splices = tuple(Splice(start, stop, tuple(ids)) for start, stop, ids in self._unit.get("splices", ()))
        return Outcome({"fed": len(self._fed)}, splices)

    def interrupt(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        self.calls.append(("interrupt",))
        return tuple(options.get("close", ()))

    def rewind(self, index: int) -> None:
        self.calls.append(("rewind", index))


def open_session(engine: Engine, opened: Any, policy: str = "scripted", max_len: int = 4096, **changes: Any) -> None:
    """Put an OpenSession for a made request into the engine's inbox. Changes are fields of it, or `name`."""
    engine.sessions.policies["scripted"] = Scripted
    name = changes.pop("name", "")
    SEEN.pop(name, None)
    fields = {"options": {"name": name} if policy == "scripted" else {}, "max_units": 4, "deadline_s": 1.0} | changes
    engine.inbox.append(OpenSession(opened, policy, max_len=max_len, **fields))


def append(engine: Engine, session_id: str, index: int, made: Prompt, deadline_s: float = 1.0, **options: Any) -> None:
    deciding = options.pop("deciding", -1)
    engine.inbox.append(AppendUnit(session_id, Unit(index, made, 0.0, deadline_s, deciding, options)))


def settle(engine: Engine) -> list[Event]:
    events: list[Event] = []
    end = time.monotonic() + REST_S
    while engine.has_work:
        assert time.monotonic() < end, "the engine did not come to rest"
        events += engine.step()
    return events
