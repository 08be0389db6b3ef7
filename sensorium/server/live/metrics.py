"""Numbers of live sessions for /metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import Metric

from sensorium.engine.histogram import Histogram
from sensorium.server.families import Families

UNIT_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)
SHORT_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class LiveMetrics:
    """Counts for all sessions of a server."""

    def __init__(self) -> None:
        self.open = self.queued = 0
        self._units: Counter[str] = Counter(listen=0, speak=0)
        self._late = 0
        self._dropped_s = 0.0
        self._frames = 0
        self._ended: Counter[str] = Counter()
        self._restarted = 0
        self._unit_s = Histogram(UNIT_S)
        self._behind_s = Histogram(SHORT_S)
        self._barge_in_s = Histogram(SHORT_S)
        self._first_audio_s = Histogram(UNIT_S)

    def unit(self, decision: str, seconds: float, behind_s: float) -> None:
        """A unit is over, so long after its last sample, and so much too late."""
        self._units[decision] += 1
        self._late += behind_s > 0
        self._unit_s.observe(seconds)
        self._behind_s.observe(behind_s)

    def dropped(self, seconds: float, frames: int) -> None:
        """What was left out because the server is behind."""
        self._dropped_s += seconds
        self._frames += frames

    def superseded(self, frames: int) -> None:
        """Pictures that came faster than they are used."""
        self._frames += frames

    def silenced(self, seconds: float) -> None:
        """From an interruption to the end of what was being computed."""
        self._barge_in_s.observe(max(seconds, 0.0))

    def first_audio(self, seconds: float) -> None:
        """From the last sample of a turn's first unit to the turn's first sound."""
        self._first_audio_s.observe(max(seconds, 0.0))

    def restarted(self) -> None:
        """A session has lost its engine and goes on."""
        self._restarted += 1

    def ended(self, reason: str) -> None:
        self._ended[reason] += 1

    def collect(self, make: Families) -> Iterator[Metric]:
        yield make.gauge("live_sessions", "Live sessions that have a place", self.open)
        yield make.gauge("live_sessions_queued", "Live sessions that wait for a place", self.queued)
        ended = {(reason,): count for reason, count in self._ended.items()}
        yield make.counter("live_sessions_ended", "Live sessions that have ended, by why", ended, "reason")
        yield make.counter(
            "live_sessions_restarted", "Times that a live session went on after its engine was lost", self._restarted
        )
        units = {(decision,): count for decision, count in self._units.items()}
        yield make.counter("realtime_units", "Units of live sessions, by what was decided", units, "decision")
        yield make.counter("realtime_units_late", "Units over more than 1 s after their last sample", self._late)
        text = "Seconds of sound left out because the server was behind"
        yield make.counter("realtime_dropped_seconds", text, self._dropped_s)
        yield make.counter("realtime_dropped_frames", "Pictures left out, too many or too late", self._frames)
        for name, text, histogram in (
            ("unit", "Last sample of a unit to its end, sound included", self._unit_s),
            ("behind", "How much later than 1 s after its last sample a unit was over", self._behind_s),
            ("first_audio", "Last sample of a turn's first unit to its first sound", self._first_audio_s),
            ("barge_in", "Interruption to the end of what was being computed", self._barge_in_s),
        ):
            yield make.histogram(f"realtime_{name}_seconds", text, histogram.bounds, histogram.freeze())
