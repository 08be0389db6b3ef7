"""What the engine remembers of one session: its queue of units, the one that runs, what was said in it. No torch.

The policy decides; this is bookkeeping around it, with the clock as an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sensorium.engine.detokenizer import Detokenizer
from sensorium.engine.resident import Resident
from sensorium.errors import ContextLengthError, RequestError, UnsupportedError
from sensorium.models.base import SessionPolicy
from sensorium.types import Decision, Outcome, Splice, TextDelta, Unit, UnitDone, UnitFailed, UnitPart, UnitTimings

_MOST_ENDS = 64
OPENING = -1
"""Index of the opening prompt where units are counted."""


@dataclass(frozen=True, slots=True)
class Rewind:
    """In the queue: go back to what the session was at the end of unit `index`."""

    index: int


@dataclass(slots=True)
class Session:
    """One session. `turn` numbers what is said, so that everything of an older turn can be told apart and dropped."""

    seq: Resident
    policy: SessionPolicy
    detokenizer: Detokenizer
    max_units: int
    """Most units that wait."""
    return_hidden: bool = False
    turn: int = 0
    is_open: bool = False
    is_closing: bool = False
    unit: Unit | None = None
    queued: deque[Unit | Rewind] = field(default_factory=deque[Unit | Rewind])
    num_rows: int = 0
    """Rows that units brought, the opening prompt's included."""
    num_said: int = 0
    splices: tuple[Splice, ...] = ()
    """What is to change once everything known is computed; no unit begins before."""
    ends: dict[int, int] = field(default_factory=dict[int, int])
    """Unit -> rows known at its end, for those that the session can go back to."""
    num_told: int = 0
    """Of what is said in the unit, in its parts."""
    _said: list[int] = field(default_factory=list[int])
    _text: list[str] = field(default_factory=list[str])
    _start: int = 0
    """Rows known before the unit."""
    _num_fed: int = 0
    _decided_s: float | None = None

    # ---- opening ---------------------------------------------------------------------------------------------------

    def opened(self) -> None:
        self.is_open = True
        self.num_rows = len(self.seq.ids)
        self.ends[OPENING] = len(self.seq.ids)
        self.policy.opened(len(self.seq.ids))

    # ---- a unit ----------------------------------------------------------------------------------------------------

    def begin(self, unit: Unit) -> None:
        """Append a unit's rows. Raises RequestError, and then nothing has changed."""
        seq = self.seq
        if unit.prompt.positions is not None:
            raise UnsupportedError("models with several position axes cannot hold a session yet")
        self.policy.begin(unit, len(seq.ids))
        needed = len(seq.ids) + len(unit.prompt.ids) + self.policy.max_feed
        if needed > seq.max_len:
            self.policy.rewind(next(reversed(self.ends)))
            raise ContextLengthError(
                f"session {seq.id!r} needs up to {needed} tokens with unit {unit.index}; its limit is {seq.max_len}"
            )
        self._start = len(seq.ids)
        seq.append(unit.prompt, unit.deciding, unit.deadline_s)
        self.unit = unit
        self.num_rows += len(unit.prompt.ids)
        self._said, self._text, self._num_fed, self._decided_s = [], [], 0, None
        self.num_told = 0

    def follow(self, decision: Decision, now_s: float) -> TextDelta | None:
        """Feed what was decided; what to tell of it."""
        seq = self.seq
        if self._decided_s is None:
            self._decided_s = now_s
        self._num_fed += len(decision.feed)
        if self._num_fed > self.policy.max_feed:
            raise ValueError(f"the policy fed more than its max_feed of {self.policy.max_feed} ids in a unit")
        seq.ids.extend(decision.feed)
        seq.deciding = -1 if decision.end else len(seq.ids) - 1
        if not decision.collect:
            return None
        token = decision.feed[0]
        text = self.detokenizer.feed(token)[0]
        self._said.append(token)
        self._text.append(text)
        self.num_said += 1
        return TextDelta(seq.id, text, (token,), turn=self.turn)

    @property
    def is_ready(self) -> bool:
        """Whether a unit may begin."""
        return self.is_open and self.unit is None and not self.splices and not self.seq.is_paused

    @property
    def is_computed(self) -> bool:
        return self.seq.computed == len(self.seq.ids) and not self.seq.holes

    @property
    def is_fed(self) -> bool:
        """Whether a unit in which nothing is decided is over."""
        seq = self.seq
        return self.unit is not None and self.unit.deciding is None and seq.computed == len(seq.ids) and not seq.holes

    @property
    def is_over(self) -> bool:
        """Whether a session that is to be closed has done all its units."""
        return self.is_closing and self.is_open and self.unit is None and not self.queued

    @property
    def said(self) -> list[int]:
        """What was said in the unit so far."""
        return self._said

    def end(self, *, defer: bool) -> tuple[Unit, Outcome]:
        """Close the unit: the sequence rests; what the policy says of it. What it changes is in `splices`.

        defer: what is not computed yet waits for the next unit.
        """
        assert self.unit is not None
        seq, (unit, self.unit) = self.seq, (self.unit, None)
        seq.deciding, seq.is_idle = -1, defer
        outcome = self.policy.end(len(seq.ids))
        self.splices = outcome.splices
        self.ends[unit.index] = len(seq.ids)
        if len(self.ends) > _MOST_ENDS:
            del self.ends[next(iter(self.ends))]
        # What is computed between units must not come before the units that others wait for.
        seq.deadline_s = unit.deadline_s + max(unit.deadline_s - unit.arrival_s, 0.0)
        return unit, outcome

    def drop(self) -> tuple[Unit, int, int]:
        """Take the unit back: it, the rows that were known before it, and the unit before it."""
        assert self.unit is not None
        unit, self.unit = self.unit, None
        self.seq.deciding, self.seq.is_idle = -1, True
        self.num_rows -= len(unit.prompt.ids)
        return unit, self._start, next(reversed(self.ends))

    def part(self, hidden: np.ndarray) -> UnitPart:
        """What was said since the last part, as far as its hidden rows are known."""
        assert self.unit is not None
        start, self.num_told = self.num_told, self.num_told + len(hidden)
        return UnitPart(self.seq.id, self.unit.index, self.turn, tuple(self._said[start : self.num_told]), hidden)

    def done(self, unit: Unit, info: Mapping[str, Any], now_s: float, *, interrupted: bool) -> UnitDone:
        scheduled_s = now_s if self.seq.first_scheduled_s is None else self.seq.first_scheduled_s
        timings = UnitTimings(
            queue_s=scheduled_s - unit.arrival_s,
            decided_s=None if self._decided_s is None else self._decided_s - unit.arrival_s,
            total_s=now_s - unit.arrival_s,
            lateness_s=max(now_s - unit.deadline_s, 0.0),
        )
        text = "".join(self._text)
        length = len(self.seq.ids)
        for splice in self.splices:
            length = splice.start + len(splice.ids) + (0 if splice.stop is None else length - splice.stop)
        return UnitDone(self.seq.id, unit.index, self.turn, tuple(self._said), text, info, timings, length, interrupted)

    def failed(self, unit: Unit, code: str, message: str, status: int) -> UnitFailed:
        return UnitFailed(self.seq.id, unit.index, self.turn, code, message, status)

    # ---- rows that change ------------------------------------------------------------------------------------------

    def end_of(self, index: int) -> int:
        """Rows known at the end of a unit."""
        if index not in self.ends:
            raise RequestError(f"session {self.seq.id!r} cannot go back to unit {index}", param="index")
        return self.ends[index]

    def rewound(self, index: int) -> None:
        self.ends = {unit: end for unit, end in self.ends.items() if unit <= index}
        self.policy.rewind(index)

    def move_ends(self, start: int, stop: int, shift: int) -> None:
        """Rows [start, stop) have become others: a unit that ended among them cannot be gone back to."""
        moved = ((index, end) for index, end in self.ends.items() if end <= start or end >= stop)
        self.ends = {index: end if end <= start else end + shift for index, end in moved}
