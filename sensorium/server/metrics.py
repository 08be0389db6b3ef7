"""What /metrics shows: the engine's counters read when scraped, and histograms fed once per finished request.

Every name is exported twice, under `vllm:` for existing dashboards and under `sensorium:`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sensorium.errors import ConfigError
from sensorium.types import Finished

if TYPE_CHECKING:
    from sensorium.engine.processor_cache import CacheStats
    from sensorium.engine.protocol import EngineStats

PREFIXES = ("vllm:", "sensorium:")
LATENCY_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))


class Histogram:
    """Counts per bucket. Unlike prometheus_client's own it takes many equal values in one call."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, as the exposition format wants them."""
        total, result = 0, list[tuple[str, float]]()
        for bound, count in zip((*map(float, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            result.append((str(bound), total))
        return result


def _bounds(name: str, given: Any) -> tuple[float, ...]:
    bounds: list[Any] = list(given) if isinstance(given, list | tuple) else []  # pyright: ignore
    numbers = [bound for bound in bounds if isinstance(bound, int | float)]
    if not numbers or len(numbers) < len(bounds) or numbers != sorted(set(numbers)):
        raise ConfigError(f"custom_histogram_buckets: {name} needs a list of rising numbers")
    return tuple(float(bound) for bound in numbers)


class Metrics(Collector):
    """Collects for one engine; `stats` returns None while there is none."""

    def __init__(
        self,
        stats: Callable[[], tuple[str, EngineStats, CacheStats] | None],
        *,
        compat: bool = True,
        buckets: Mapping[str, Any] | None = None,
    ) -> None:
        """compat: export the vllm: names too. buckets: histogram name -> its bounds, in place of ours."""
        self._stats = stats
        self._prefixes = PREFIXES if compat else PREFIXES[1:]
        self._finished: Counter[str] = Counter()
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._http_s = Histogram(LATENCY_S)
        self._histograms = {
            "time_to_first_token_seconds": ("Arrival to first token", Histogram(FIRST_TOKEN_S)),
            "inter_token_latency_seconds": ("Time between tokens: each request's mean", Histogram(PER_TOKEN_S)),
            "request_time_per_output_token_seconds": ("A request's mean time per token", Histogram(PER_TOKEN_S)),
            "e2e_request_latency_seconds": ("Arrival to end", Histogram(LATENCY_S)),
            "request_queue_time_seconds": ("Arrival to first scheduling", Histogram(LATENCY_S)),
            "request_prefill_time_seconds": ("First scheduling to first token", Histogram(LATENCY_S)),
            "request_decode_time_seconds": ("First token to end", Histogram(LATENCY_S)),
            "request_inference_time_seconds": ("First scheduling to end", Histogram(LATENCY_S)),
            "request_prompt_tokens": ("Prompt tokens", Histogram(TOKENS)),
            "request_generation_tokens": ("Generated tokens", Histogram(TOKENS)),
        }
        for name, bounds in (buckets or {}).items():
            if name not in self._histograms:
                known = ", ".join(self._histograms)
                raise ConfigError(f"custom_histogram_buckets: there is no {name!r}; known: {known}")
            self._histograms[name] = (self._histograms[name][0], Histogram(_bounds(name, bounds)))
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def finished(self, event: Finished) -> None:
        """Count one request that ran to its end."""
        timings, usage = event.timings, event.usage
        self._finished[event.reason] += 1
        self._observe("e2e_request_latency_seconds", timings.total_s)
        self._observe("request_queue_time_seconds", timings.queue_s)
        self._observe("request_prompt_tokens", usage.prompt_tokens)
        self._observe("request_generation_tokens", usage.completion_tokens)
        if timings.ttft_s is None:
            return
        decode_s, gaps = timings.total_s - timings.ttft_s, usage.completion_tokens - 1
        self._observe("time_to_first_token_seconds", timings.ttft_s)
        self._observe("request_prefill_time_seconds", timings.ttft_s - timings.queue_s)
        self._observe("request_decode_time_seconds", decode_s)
        self._observe("request_inference_time_seconds", timings.total_s - timings.queue_s)
        if gaps > 0:
            self._observe("request_time_per_output_token_seconds", decode_s / gaps)
            self._observe("inter_token_latency_seconds", decode_s / gaps, gaps)

    def cut(self, reason: str) -> None:
        """Count one request that did not run to its end: "error" or "abort"."""
        self._finished[reason] += 1

    def answered(self, method: str, handler: str, status: int, seconds: float) -> None:
        """Count one HTTP exchange."""
        self._requests[method, handler, str(status)] += 1
        self._http_s.observe(seconds)

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("http_requests", "HTTP requests", labels=["method", "handler", "status"])
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        yield HistogramMetricFamily(
            "http_request_duration_seconds", "HTTP exchanges", self._http_s.buckets(), self._http_s.sum
        )
        current = self._stats()
        if current is not None:
            for prefix in self._prefixes:
                yield from self._engine(prefix, *current)

    def _engine(self, prefix: str, model_name: str, stats: EngineStats, cache: CacheStats) -> Iterator[Metric]:
        names, values = ["model_name", "engine"], [model_name, "0"]
        kv_share = stats.kv_blocks_used / max(1, stats.kv_blocks_total)
        gauges = {
            "num_requests_running": ("Sequences being computed", stats.running),
            "num_requests_waiting": ("Requests waiting for a place", stats.waiting),
            "kv_cache_usage_perc": ("Share of KV blocks in use, 0 to 1", kv_share),
            "encoder_cache_bytes": ("Bytes of media embeddings kept", stats.encoder_cache_bytes),
        }
        prompt_tokens = stats.prompt_tokens + stats.prefix_hit_tokens
        counters = {
            "prompt_tokens": ("Prompt tokens, cached ones included", prompt_tokens),
            "prompt_tokens_cached": ("Prompt tokens found in the prefix cache", stats.prefix_hit_tokens),
            "prefix_cache_queries": ("Tokens looked up in the prefix cache", prompt_tokens),
            "prefix_cache_hits": ("Tokens found there", stats.prefix_hit_tokens),
            "mm_cache_queries": ("Media items looked up in the processor cache", cache.queries),
            "mm_cache_hits": ("Media items found there", cache.hits),
            "generation_tokens": ("Generated tokens", stats.generation_tokens),
            "num_preemptions": ("Sequences that had to be computed again", stats.preemptions),
            "engine_steps": ("Engine steps", stats.steps),
            "engine_restarts": ("Times the engine process was started again", stats.restarts),
            "mm_items": ("Media items encoded", stats.encoded_items),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(prefix + name, text, labels=names)
            gauge.add_metric(values, value)
            yield gauge
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(prefix + name, text, labels=names)
            counter.add_metric(values, value)
            yield counter
        success = CounterMetricFamily(prefix + "request_success", "Ended requests", labels=[*names, "finished_reason"])
        for reason, count in self._finished.items():
            success.add_metric([*values, reason], count)
        yield success
        for name, (text, histogram) in self._histograms.items():
            family = HistogramMetricFamily(prefix + name, text, labels=names)
            family.add_metric(values, histogram.buckets(), histogram.sum)
            yield family

    def _observe(self, name: str, value: float, times: int = 1) -> None:
        self._histograms[name][1].observe(max(0.0, value), times)
