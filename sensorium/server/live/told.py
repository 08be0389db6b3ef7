"""The engine's events of a session as the service tells them: turns that begin and end, units in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sensorium.engine.session_client import failure
from sensorium.errors import EngineError, SensoriumError
from sensorium.server.live import events
from sensorium.server.live.clock import Clock
from sensorium.server.live.events import TurnEnded, TurnStarted, UnitOver, UnitTimes, Wrong
from sensorium.server.live.metrics import LiveMetrics
from sensorium.types import Event, Failed, TextDelta, UnitDone, UnitFailed

LATE_S = 1.0
"""After its last sample; a unit that is over later is late."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A unit that the engine has been given. Places in samples at 16 kHz; seconds of the service's clock."""

    index: int
    start: int
    end: int
    heard_s: float
    handed_s: float
    encode_s: float


@dataclass(slots=True)
class _Ended:
    """A unit whose words are all there, and perhaps not all of its sound."""

    handed: Handed
    done: UnitDone
    turn: int | None
    text_end: bool
    decided_s: float
    is_sounding: bool


class Narrator:
    """Of one session. Indexes of units are the engine's; what it refused has an index too, and is told as wrong."""

    def __init__(self, tell: Callable[[events.Event], None], clock: Clock, metrics: LiveMetrics, kv_limit: int) -> None:
        self._tell = tell
        self._clock = clock
        self._metrics = metrics
        self._kv_limit = kv_limit
        self._handed: deque[Handed] = deque()
        self._ended: deque[_Ended] = deque()
        self._turn: int | None = None
        self._num_turns = 0
        self._interrupted_s: float | None = None
        self.units = self.late = self.spoken_units = self.spoken_samples = 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being said."""
        return self._turn is None and not self._ended

    def handed(self, unit: Handed) -> None:
        self._handed.append(unit)

    def interrupt(self) -> None:
        """What is said now belongs to no turn any more."""
        self._interrupted_s = self._clock.now()
        if self._turn is not None:
            turn, self._turn = self._turn, None
            self._tell(TurnEnded(turn, cancelled=True))
        for unit in self._ended:
            unit.is_sounding = False
        self._flush()
        if not self._handed:
            self._silenced()

    def take(self, event: Event, engine_turn: int) -> SensoriumError | None:
        """One event of the engine; what the session failed with, if it did. engine_turn: interruptions so far."""
        match event:
            case TextDelta():
                if event.turn == engine_turn:
                    self._say(event.text)
            case UnitDone():
                self._over(event, engine_turn)
            case UnitFailed():
                if self._handed:
                    self._handed.popleft()
                self._tell(Wrong(failure(event)))
            case Failed():
                return failure(event)
            case _:
                pass
        return None

    def _say(self, text: str) -> None:
        turn = self._begun()
        if text and self._handed:
            self._tell(events.TextDelta(self._handed[0].index, turn, text))

    def _begun(self) -> int:
        """The turn that goes on, or the next one."""
        if self._turn is None:
            self._num_turns += 1
            self._turn = self._num_turns
            self._tell(TurnStarted(self._turn))
        return self._turn

    def _over(self, done: UnitDone, engine_turn: int) -> None:
        if not self._handed or self._handed[0].index != done.index:
            raise EngineError(f"unit {done.index} ended out of its order")
        handed = self._handed.popleft()
        is_old = done.turn < engine_turn
        speaks = not done.info["is_listen"]
        if speaks and not is_old:
            self._begun()
        goes_on = bool(done.info["turn_open"]) and not is_old
        turn, text_end = self._turn, self._turn is not None and not goes_on
        if is_old:
            self._silenced()
        self._ended.append(_Ended(handed, done, turn, text_end, self._clock.now(), is_sounding=False))
        if text_end and turn is not None and not speaks:
            # It was made to listen: what it had begun to say is not finished.
            self._turn = None
            self._tell(TurnEnded(turn, cancelled=True))
        self._flush()

    def _silenced(self) -> None:
        """An interruption has reached the engine."""
        if self._interrupted_s is not None:
            self._metrics.silenced(self._clock.now() - self._interrupted_s)
            self._interrupted_s = None

    def _flush(self) -> None:
        """Tell the units whose sound is complete, in their order."""
        while self._ended and not self._ended[0].is_sounding:
            unit = self._ended.popleft()
            self._tell(self._unit_over(unit))
            if unit.text_end and unit.turn is not None and unit.turn == self._turn:
                self._turn = None
                self._tell(TurnEnded(unit.turn))

    def _unit_over(self, unit: _Ended) -> UnitOver:
        handed, done, now = unit.handed, unit.done, self._clock.now()
        timings = done.timings
        decided = timings.queue_s if timings.decided_s is None else timings.decided_s
        times = UnitTimes(
            wait=handed.handed_s - handed.heard_s + timings.queue_s,
            encode=handed.encode_s,
            prefill=decided - timings.queue_s,
            decode=timings.total_s - decided,
            speech=None,
            total=now - handed.heard_s,
        )
        behind = max(times.total - LATE_S, 0.0)
        speaks = not done.info["is_listen"]
        self.units += 1
        self.late += behind > 0
        self.spoken_units += speaks
        self._metrics.unit("speak" if speaks else "listen", times.total, behind)
        return UnitOver(
            done.index,
            "speak" if speaks else "listen",
            unit.turn if speaks else None,
            done.text if speaks else "",
            unit.text_end and speaks,
            handed.start,
            handed.end,
            times,
            behind,
            done.num_tokens,
            self._kv_limit,
        )
