"""The engine's events of a session as the service tells them: turns that begin and end, units in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sensorium.engine.fed_stream import failure
from sensorium.errors import EngineError, SensoriumError
from sensorium.server.live import events
from sensorium.server.live.clock import Clock
from sensorium.server.live.events import SoundDelta, TurnEnded, TurnStarted, UnitOver, UnitTimes, Wrong
from sensorium.server.live.history import History
from sensorium.server.live.metrics import LiveMetrics
from sensorium.server.live.units import LiveUnit
from sensorium.types import Event, Failed, Sound, TextDelta, UnitDone, UnitFailed

LATE_S = 1.0
"""After its last sample; a unit that is over later is late."""


@dataclass(frozen=True, slots=True)
class Handed:
    """A unit that the engine has been given. Seconds of the service's clock."""

    index: int
    unit: LiveUnit
    handed_s: float
    encode_s: float


@dataclass(slots=True)
class _Ended:
    """A unit whose words are all there, and perhaps not all of its sound."""

    handed: Handed
    done: UnitDone
    turn: int | None
    text_end: bool
    said_s: float
    is_sounding: bool
    sounded_s: float | None = None


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
        """What words belong to. Sound of the turn before may still be on its way."""
        self._num_turns = 0
        self._num_cancelled = 0
        """All turns up to this one are over, whatever still comes of them."""
        self._early: list[Sound] = []
        """Of the unit that runs."""
        self._begun_s: float | None = None
        self._interrupted_s: float | None = None
        self.history = History()
        self._next = self._base = 0
        """The number of the next unit as clients are told, and what is added to the engine's index for it."""
        self.units = self.late = self.spoken_units = self.spoken_samples = 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is being said."""
        return self._turn is None and not self._ended

    def handed(self, unit: Handed) -> None:
        self._handed.append(unit)
        self._next = unit.index + self._base + 1

    def lose_engine(self) -> list[LiveUnit]:
        """End what was being said; the units that are not over, for another engine to begin with."""
        self._cancel()
        self._silenced()
        self._early.clear()
        lost, self._handed = self._handed, deque()
        self._next -= len(lost)
        return [handed.unit for handed in lost]

    def begin_again(self, num_units: int) -> None:
        """In an engine that has computed so many units already."""
        self._base = self._next - num_units

    def interrupt(self) -> None:
        """What is said now belongs to no turn any more."""
        self._interrupted_s = self._clock.now()
        self._cancel()
        if not self._handed:
            self._silenced()

    def take(self, event: Event, engine_turn: int) -> SensoriumError | None:
        """One event of the engine; what the session failed with, if it did. engine_turn: interruptions so far."""
        match event:
            case TextDelta():
                if event.turn == engine_turn:
                    self._say(event.text)
            case Sound():
                if event.turn == engine_turn:
                    self._sound(event)
            case UnitDone():
                self._over(event, engine_turn)
            case UnitFailed(code="engine_restarted"):
                pass  # it was not the unit's fault
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
            self._tell(events.TextDelta(self._handed[0].index + self._base, turn, text))

    def _begun(self) -> int:
        """The turn that goes on, or the next one."""
        if self._turn is None:
            self._num_turns += 1
            self._turn = self._num_turns
            self._begun_s = self._handed[0].unit.heard_s if self._handed else None
            self._tell(TurnStarted(self._turn))
        return self._turn

    def _over(self, done: UnitDone, engine_turn: int) -> None:
        if not self._handed or self._handed[0].index != done.index:
            raise EngineError(f"unit {done.index} ended out of its order")
        is_old = done.turn < engine_turn
        speaks = not done.info["is_listen"]
        if speaks and not is_old:
            self._begun()
        handed, turn = self._handed.popleft(), self._turn
        text_end = turn is not None and (is_old or not done.info["turn_open"])
        self.history.add(handed.unit, done.text if speaks and not is_old else "")
        if is_old:
            self._silenced()
        sounds = done.speaks and speaks and not is_old
        self._ended.append(_Ended(handed, done, turn, text_end and speaks, self._clock.now(), sounds))
        if text_end and not speaks:
            # It was made to listen: what it had begun to say is not finished.
            self._cancel()
        elif text_end:
            self._turn = None
        early, self._early = self._early, []
        for event in early:
            self._sound(event)
        self._flush()

    def _sound(self, event: Sound) -> None:
        if any(handed.index == event.index for handed in self._handed):
            self._early.append(event)
            return
        unit = next((one for one in self._ended if one.done.index == event.index and one.is_sounding), None)
        if unit is None or unit.turn is None or unit.turn <= self._num_cancelled:
            return
        if event.ended == "failed":
            self._tell(Wrong(failure(event)))
        is_last = event.ended is not None and unit.text_end
        if event.pcm or is_last:
            if self._begun_s is not None and event.pcm:
                self._metrics.first_audio(self._clock.now() - self._begun_s)
                self._begun_s = None
            self.spoken_samples += len(event.pcm) // 2
            self._tell(SoundDelta(event.index + self._base, unit.turn, event.pcm, is_last))
        if event.ended is not None:
            unit.is_sounding, unit.sounded_s = False, self._clock.now()
            self._flush()

    def _cancel(self) -> None:
        """End every turn that is not over, in its order; no sound of them is told from now on."""
        turns = [unit.turn for unit in self._ended if unit.text_end and unit.turn is not None]
        if self._turn is not None:
            turns.append(self._turn)
        self._turn, self._num_cancelled = None, self._num_turns
        for unit in self._ended:
            unit.is_sounding = False
            unit.text_end = False
        for turn in turns:
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
            if unit.text_end and unit.turn is not None:
                self._tell(TurnEnded(unit.turn))

    def _unit_over(self, unit: _Ended) -> UnitOver:
        handed, done, now = unit.handed, unit.done, self._clock.now()
        timings = done.timings
        decided = timings.queue_s if timings.decided_s is None else timings.decided_s
        times = UnitTimes(
            wait=handed.handed_s - handed.unit.heard_s + timings.queue_s,
            encode=handed.encode_s,
            prefill=decided - timings.queue_s,
            decode=timings.total_s - decided,
            speech=None if unit.sounded_s is None else unit.sounded_s - unit.said_s,
            total=now - handed.unit.heard_s,
        )
        behind = max(times.total - LATE_S, 0.0)
        speaks = not done.info["is_listen"]
        self.units += 1
        self.late += behind > 0
        self.spoken_units += speaks
        self._metrics.unit("speak" if speaks else "listen", times.total, behind)
        return UnitOver(
            done.index + self._base,
            "speak" if speaks else "listen",
            unit.turn if speaks else None,
            done.text if speaks else "",
            unit.text_end,
            handed.unit.end - len(handed.unit.samples),
            handed.unit.end,
            times,
            behind,
            done.num_tokens,
            self._kv_limit,
            len(done.ids),
        )
