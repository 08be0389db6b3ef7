"""Session policy: which unit of a session is computed now, when it is over, what a barge-in discards. No torch.

A session is a resident sequence fed over time. Its units queue here; one at a time is appended to the sequence and
decoded until an ending token or the cap, and the session is idle until the next one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sensorium.engine.sequence import Sequence
from sensorium.errors import ContextLengthError, OverloadedError, UnsupportedError
from sensorium.types import Unit, UnitFinished


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """end_ids: tokens that end a unit. max_tokens: most tokens per unit. max_queued: units that may wait."""

    end_ids: frozenset[int]
    max_tokens: int
    max_queued: int = 4


@dataclass(slots=True)
class Session:
    """One session. `turn` numbers what is said, so that everything of an older turn can be told apart and dropped."""

    sequence: Sequence
    policy: SessionPolicy
    turn: int = 0
    unit: Unit | None = None
    queued: deque[Unit] = field(default_factory=deque[Unit])

    def push(self, unit: Unit) -> None:
        """Queue a unit. OverloadedError when the session has fallen too far behind to take it."""
        if len(self.queued) >= self.policy.max_queued:
            raise OverloadedError(f"session {self.sequence.id!r} is {len(self.queued)} units behind", retry_after_s=1.0)
        self.queued.append(unit)

    def begin(self) -> Unit | None:
        """Start the next unit if the session is idle; the unit started, if any."""
        if self.unit is not None or not self.queued:
            return None
        unit = self.queued.popleft()
        if unit.prompt.positions is not None:
            raise UnsupportedError("models with several position axes cannot hold a session yet")
        needed = len(self.sequence.ids) + len(unit.prompt.ids) + self.policy.max_tokens
        if needed > self.sequence.max_len:
            raise ContextLengthError(
                f"session {self.sequence.id!r} needs {needed} tokens with unit {unit.index}; the limit is "
                f"{self.sequence.max_len}"
            )
        self.sequence.append_unit(unit.prompt, unit.deadline_s)
        self.unit = unit
        return unit

    def is_over(self, token: int) -> bool:
        """Whether the token just appended ends the current unit."""
        return token in self.policy.end_ids or self.sequence.num_generated >= self.policy.max_tokens

    def end(self, now_s: float) -> UnitFinished:
        """Close the current unit: the sequence rests, its last token is computed together with the next unit."""
        assert self.unit is not None
        unit, self.unit = self.unit, None
        self.sequence.idle = True
        lateness_s = max(now_s - unit.deadline_s, 0.0)
        return UnitFinished(self.sequence.id, unit.index, self.sequence.num_generated, lateness_s, self.turn)

    def barge_in(self, now_s: float) -> UnitFinished | None:
        """The user speaks over the answer: a new turn begins, and what was being said ends here."""
        finished = self.end(now_s) if self.unit is not None else None
        self.turn += 1
        return finished
