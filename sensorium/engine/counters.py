"""What an engine counts for /metrics. Fed once per step, item, unit or request, never by a loop over tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sensorium.engine.encoder_cache import EncoderCacheIndex
from sensorium.engine.histogram import STEP_TOKENS, UNIT_S, Buckets, Histogram, Histograms
from sensorium.engine.protocol import EngineStats
from sensorium.engine.scheduler import Scheduler
from sensorium.types import SOUND_RATE, Sound, Unit, UnitDone


@dataclass(slots=True)
class _Spoken:
    arrival_s: float
    deadline_s: float
    is_heard: bool = False


class UnitCounters:
    """What became of the units of sessions, and of what is said."""

    def __init__(self) -> None:
        self.done = self.late = self.failed = self.barge_ins = 0
        self.sound_s = 0.0
        """Of sessions, requests and speeches."""
        self.seconds = Histograms(UNIT_S)
        """Stage -> seconds that a unit spent in it; total and those of sound are from its arrival."""
        self._spoken: dict[tuple[str, int], _Spoken] = {}

    def begun(self, session_id: str, unit: Unit) -> None:
        """A unit of a session that speaks."""
        self._spoken[session_id, unit.index] = _Spoken(unit.arrival_s, unit.deadline_s)

    def dropped(self, session_id: str, index: int | None = None) -> None:
        """Nothing is heard of a unit, or of all of a session's."""
        for key in [key for key in self._spoken if key[0] == session_id and index in (None, key[1])]:
            del self._spoken[key]

    def ended(self, done: UnitDone) -> None:
        """The text of a unit is there. One that is spoken may be late yet."""
        timings = done.timings
        self.done += 1
        if not done.speaks:
            self.late += timings.lateness_s > 0
            self._spoken.pop((done.request_id, done.index), None)
        decided_s = timings.total_s if timings.decided_s is None else timings.decided_s
        self.seconds.observe("queue", timings.queue_s)
        self.seconds.observe("prefill", decided_s - timings.queue_s)
        self.seconds.observe("decode", timings.total_s - decided_s)
        self.seconds.observe("total", timings.total_s)

    def heard(self, sound: Sound, now_s: float) -> None:
        self.sound_s += len(sound.pcm) / 2 / SOUND_RATE
        key = sound.request_id, sound.index
        unit = self._spoken.get(key)
        if unit is None:
            return
        if sound.pcm and not unit.is_heard:
            unit.is_heard = True
            self.seconds.observe("first_sound", now_s - unit.arrival_s)
        if sound.ended is not None:
            del self._spoken[key]
        if sound.ended in ("eos", "length"):
            self.seconds.observe("sound", now_s - unit.arrival_s)
            self.late += now_s > unit.deadline_s


class Laps:
    """Where the time of a thread goes, by the parts of what it does again and again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """What has passed since the last call was this part."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


class Counters:
    """Belongs to the engine's thread. Totals since the engine started."""

    def __init__(self, encoder_s: Histograms, device_s: Histograms, units: UnitCounters) -> None:
        self.steps = self.prompt_tokens = self.generation_tokens = self.encoded_items = 0
        self.laps = Laps()
        self.units = units
        self._step_tokens = Histogram(STEP_TOKENS)
        self._encoder_s, self._device_s = encoder_s, device_s

    def step(self, num_tokens: int) -> None:
        self.steps += 1
        if num_tokens:
            self._step_tokens.observe(num_tokens)

    def snapshot(
        self, scheduler: Scheduler, queued: int, deferred: int, compile_s: Buckets, units_waiting: int = 0
    ) -> EngineStats:
        """queued: requests that the scheduler has not seen yet. deferred: those whose grammar is being compiled."""
        cache: EncoderCacheIndex = scheduler.encoder_cache
        pool, units = scheduler.pool, self.units
        return EngineStats(
            waiting=len(scheduler.waiting) + queued + deferred,
            deferred=deferred,
            running=len(scheduler.running),
            kv_blocks_used=pool.num_blocks - pool.num_free,
            kv_blocks_total=pool.num_blocks,
            block_size=pool.block_size,
            encoder_cache_bytes=cache.used_bytes,
            encoder_cache_queries=scheduler.encoder_cache_queries,
            encoder_cache_hits=scheduler.encoder_cache_hits,
            steps=self.steps,
            prompt_tokens=self.prompt_tokens,
            generation_tokens=self.generation_tokens,
            prefix_query_tokens=scheduler.prefix_query_tokens,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            encoded_items=self.encoded_items,
            preemptions=scheduler.num_preemptions,
            step_tokens=self._step_tokens.freeze(),
            encoder_s=self._encoder_s.freeze(),
            device_s=self._device_s.freeze(),
            step_s=self.laps.seconds.copy(),
            sessions=len(scheduler.resident),
            units_waiting=units_waiting,
            units_done=units.done,
            units_late=units.late,
            units_failed=units.failed,
            barge_ins=units.barge_ins,
            unit_s=units.seconds.freeze(),
            sound_s=units.sound_s,
            compile_s=compile_s,
        )
