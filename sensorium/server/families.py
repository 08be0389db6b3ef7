"""Snapshots as Prometheus families. Which names there are, and what each one says, stands here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sensorium.engine.histogram import COMPILE_S, MEDIA_S, STEP_TOKENS, UNIT_S, UNIT_STAGES, Buckets

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient
    from sensorium.engine.prepare import MediaStats
    from sensorium.engine.protocol import EngineStats

Samples = float | Mapping[tuple[str, ...], float]
"""One value, or one for each combination of further labels."""


class Families:
    """Makes families of one prefix whose samples all carry the labels of one engine."""

    def __init__(self, prefix: str, model_name: str) -> None:
        self._prefix = prefix
        self._names = ("model_name", "engine")
        self._values = (model_name, "0")

    def gauge(self, name: str, text: str, samples: Samples, *labels: str) -> Metric:
        return self._fill(GaugeMetricFamily(self._prefix + name, text, labels=(*self._names, *labels)), samples)

    def counter(self, name: str, text: str, samples: Samples, *labels: str) -> Metric:
        return self._fill(CounterMetricFamily(self._prefix + name, text, labels=(*self._names, *labels)), samples)

    def histogram(self, name: str, text: str, bounds: Sequence[float], buckets: Buckets) -> Metric:
        return self.histograms(name, text, bounds, {(): buckets})

    def histograms(
        self, name: str, text: str, bounds: Sequence[float], samples: Mapping[tuple[str, ...], Buckets], *labels: str
    ) -> Metric:
        family = HistogramMetricFamily(self._prefix + name, text, labels=(*self._names, *labels))
        for values, buckets in samples.items():
            family.add_metric((*self._values, *values), buckets.cumulative(bounds), buckets.sum)
        return family

    def _fill(self, family: GaugeMetricFamily | CounterMetricFamily, samples: Samples) -> Metric:
        for values, value in samples.items() if isinstance(samples, Mapping) else [((), samples)]:
            family.add_metric((*self._values, *values), value)
        return family


def compatible(make: Families, client: EngineClient, stats: EngineStats, media: MediaStats) -> Iterator[Metric]:
    """vLLM's names, in its words, for what the engine itself counts."""
    prompt_tokens = stats.prompt_tokens + stats.prefix_hit_tokens
    cache = media.cache
    yield make.gauge("num_requests_running", "Sequences being computed", stats.running)
    yield make.gauge("num_requests_waiting", "Requests waiting for a place", stats.waiting)
    reasons = {("capacity",): stats.waiting - stats.deferred, ("deferred",): stats.deferred}
    text = "capacity: for room in a step or the KV cache; deferred: for a grammar"
    yield make.gauge("num_requests_waiting_by_reason", text, reasons, "reason")
    usage = stats.kv_blocks_used / max(1, stats.kv_blocks_total)
    yield make.gauge("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", usage)
    facts = {
        "block_size": stats.block_size,
        "num_gpu_blocks": stats.kv_blocks_total,
        "cache_dtype": client.facts.dtype,
        "enable_prefix_caching": client.config.enable_prefix_caching,
        "gpu_memory_utilization": client.config.gpu_memory_utilization,
    }
    yield make.gauge("cache_config_info", "The KV cache; always 1", {tuple(map(str, facts.values())): 1}, *facts)
    if client.config.enable_sleep_mode:
        asleep = client.state == "sleeping"
        states = {("awake",): not asleep, ("weights_offloaded",): False, ("discard_all",): asleep}
        yield make.gauge("engine_sleep_state", "1 for the state that it is in, else 0", states, "sleep_state")
    yield make.counter("prompt_tokens", "Prompt tokens, cached ones included", prompt_tokens)
    yield make.counter("prompt_tokens_cached", "Those found in the prefix cache", stats.prefix_hit_tokens)
    sources = {("local_compute",): stats.prompt_tokens, ("local_cache_hit",): stats.prefix_hit_tokens}
    yield make.counter("prompt_tokens_by_source", "Prompt tokens, computed or found", sources, "source")
    yield make.counter("generation_tokens", "Generated tokens", stats.generation_tokens)
    yield make.counter("prefix_cache_queries", "Tokens looked up in the prefix cache", stats.prefix_query_tokens)
    yield make.counter("prefix_cache_hits", "Tokens found there", stats.prefix_hit_tokens)
    yield make.counter("mm_cache_queries", "Media items looked up in the processor cache", cache.queries)
    yield make.counter("mm_cache_hits", "Media items found there", cache.hits)
    yield make.counter("num_preemptions", "Sequences that lost their place", stats.preemptions)
    yield make.histogram("iteration_tokens_total", "Tokens computed in a step", STEP_TOKENS, stats.step_tokens)


def own(make: Families, client: EngineClient, stats: EngineStats, media: MediaStats) -> Iterator[Metric]:
    """What only sensorium counts."""
    capacity = client.facts.encoder_cache_bytes
    usage = stats.encoder_cache_bytes / max(1, capacity)
    yield make.gauge("encoder_cache_bytes", "Bytes of media embeddings kept", stats.encoder_cache_bytes)
    yield make.gauge("encoder_cache_usage_perc", "Share of the encoder cache in use, 0 to 1", usage)
    text = "Media items that a request needed encoded"
    yield make.counter("encoder_cache_queries", text, stats.encoder_cache_queries)
    yield make.counter("encoder_cache_hits", "Those that were there already", stats.encoder_cache_hits)
    yield make.counter("mm_encoded_items", "Media items encoded", stats.encoded_items)
    text = "One pass of an encoder, over all items of a step"
    yield make.histograms("mm_encoder_seconds", text, MEDIA_S, _one_label(stats.encoder_s), "modality")
    yield make.counter("engine_steps", "Engine steps", stats.steps)
    parts = {(part,): seconds for part, seconds in stats.step_s.items()}
    yield make.counter("engine_step_seconds", "Where the time of the engine's thread goes", parts, "part")
    text = "One pass of a step, as the device measures it"
    yield make.histograms("device_pass_seconds", text, MEDIA_S, _one_label(stats.device_s), "pass")
    yield make.counter("engine_restarts", "Times the engine process was started again", stats.restarts)
    text = "Until an answer format could be followed"
    yield make.histogram("structured_output_compile_seconds", text, COMPILE_S, stats.compile_s)
    text = "Checking an answer format not seen before"
    yield make.histogram("structured_output_check_seconds", text, COMPILE_S, client.check_seconds())
    yield from _sessions(make, stats)
    yield from _media(make, media)


def _sessions(make: Families, stats: EngineStats) -> Iterator[Metric]:
    yield make.gauge("sessions_open", "Sessions in the engine", stats.sessions)
    yield make.gauge("session_units_waiting", "Units of sessions that have come and not begun", stats.units_waiting)
    on_time = stats.units_done - stats.units_late
    results = {("on_time",): on_time, ("late",): stats.units_late, ("failed",): stats.units_failed}
    yield make.counter("session_units", "Units of sessions by how they ended", results, "result")
    text = "What a unit spends in each stage; total and those of sound are from its arrival"
    stages = dict.fromkeys(UNIT_STAGES, Buckets()) | dict(stats.unit_s)
    yield make.histograms("session_unit_seconds", text, UNIT_S, _one_label(stages), "stage")
    yield make.counter("sound_seconds", "Seconds of sound made", stats.sound_s)
    yield make.counter("session_barge_ins", "Times a session was interrupted", stats.barge_ins)


def _media(make: Families, media: MediaStats) -> Iterator[Metric]:
    totals = media.totals
    yield make.gauge("mm_cache_bytes", "Bytes of preprocessed media kept", media.cache.bytes)
    yield make.gauge("mm_cache_items", "Preprocessed media items kept", media.cache.items)
    text = "Media items that no worker has taken yet"
    yield make.gauge("media_queue_depth", text, {(lane,): depth for lane, depth in media.waiting.items()}, "lane")
    for phase, seconds in totals.seconds.items():
        text = {"fetch": "Fetching a media item", "decode": "Decoding one", "preprocess": "Preprocessing one"}[phase]
        yield make.histograms(f"mm_{phase}_seconds", text, MEDIA_S, _one_label(seconds), "modality")
    items = {(modality,): count for modality, count in totals.items.items()}
    yield make.counter("mm_items", "Media items prepared or found in the cache", items, "modality")
    yield make.counter("mm_errors", "Media items refused, by error code", totals.errors, "modality", "reason")
    sizes = {(modality,): size for modality, size in totals.bytes.items()}
    yield make.counter("media_bytes", "Bytes of media files taken in", sizes, "modality")
    text = "Decoding workers that crashed or took too long"
    yield make.counter("media_workers_replaced", text, media.pool.replaced)


def _one_label(histograms: Mapping[str, Buckets]) -> dict[tuple[str, ...], Buckets]:
    return {(label,): buckets for label, buckets in histograms.items()}
