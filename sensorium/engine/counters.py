"""What an engine counts for /metrics. Fed once per step, per item or per request, never by a loop over tokens."""

from __future__ import annotations

from sensorium.engine.encoder_cache import EncoderCacheIndex
from sensorium.engine.histogram import STEP_TOKENS, Buckets, Histogram, Histograms
from sensorium.engine.protocol import EngineStats
from sensorium.engine.scheduler import Scheduler


class Counters:
    """Belongs to the engine's thread. Totals since the engine started."""

    def __init__(self, encoder_s: Histograms) -> None:
        self.steps = self.prompt_tokens = self.generation_tokens = self.encoded_items = 0
        self._step_tokens = Histogram(STEP_TOKENS)
        self._encoder_s = encoder_s

    def step(self, num_tokens: int) -> None:
        self.steps += 1
        if num_tokens:
            self._step_tokens.observe(num_tokens)

    def snapshot(self, scheduler: Scheduler, queued: int, deferred: int, compile_s: Buckets) -> EngineStats:
        """queued: requests that the scheduler has not seen yet. deferred: those whose grammar is being compiled."""
        cache: EncoderCacheIndex = scheduler.encoder_cache
        pool = scheduler.pool
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
            compile_s=compile_s,
        )
