"""What an engine counts for /metrics. Fed once per step, item, unit or request, never by a loop over tokens."""

from __future__ import annotations

import time

from sensorium.engine.encoder_cache import EncoderCacheIndex
from sensorium.engine.histogram import STEP_TOKENS, UNIT_S, Buckets, Histogram, Histograms
from sensorium.engine.protocol import EngineStats
from sensorium.engine.scheduler import Scheduler
from sensorium.types import UnitTimings


class UnitCounters:
    """What became of the units of sessions."""

    def __init__(self) -> None:
        self.done = self.late = self.failed = self.barge_ins = 0
        self.seconds = Histograms(UNIT_S)
        """Stage -> seconds that a unit spent in it; total is from its arrival to its end."""

    def ended(self, timings: UnitTimings) -> None:
        self.done += 1
        self.late += timings.lateness_s > 0
        decided_s = timings.total_s if timings.decided_s is None else timings.decided_s
        self.seconds.observe("queue", timings.queue_s)
        self.seconds.observe("prefill", decided_s - timings.queue_s)
        self.seconds.observe("decode", timings.total_s - decided_s)
        self.seconds.observe("total", timings.total_s)


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
            compile_s=compile_s,
        )
