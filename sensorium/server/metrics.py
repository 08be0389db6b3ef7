"""What /metrics shows: the engine's counters as they are when scraped, and what the server counts request by request.

vLLM's names are exported twice, under `vllm:` for existing dashboards and under `sensorium:`; our own only there.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from sensorium.engine.histogram import Histogram
from sensorium.errors import ConfigError
from sensorium.server.families import Families, compatible, own
from sensorium.server.lag import BOUNDS_S, LoopLag
from sensorium.server.live.metrics import LiveMetrics
from sensorium.types import Finished

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

VLLM, OWN = "vllm:", "sensorium:"
LATENCY_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
FIRST_SOUND_S = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1, 1.5, 2, 3, 5, 10, 30, 60)
PER_TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
TOKENS = tuple(step * 10**power for power in range(6) for step in (1, 2, 5))
HTTP_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
REASONS = ("stop", "length", "abort", "error")
"""What a request can end with."""
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

_REQUESTS: dict[str, tuple[str, Sequence[float]]] = {
    "time_to_first_token_seconds": ("Arrival to first token", FIRST_TOKEN_S),
    "inter_token_latency_seconds": ("Between two tokens of a request, as they reach the server", PER_TOKEN_S),
    "request_time_per_output_token_seconds": ("A request's mean time per token after the first", PER_TOKEN_S),
    "e2e_request_latency_seconds": ("Arrival to end", LATENCY_S),
    "request_queue_time_seconds": ("Arrival to first scheduling", LATENCY_S),
    "request_prefill_time_seconds": ("First scheduling to first token", LATENCY_S),
    "request_decode_time_seconds": ("First token to end", LATENCY_S),
    "request_inference_time_seconds": ("First scheduling to end", LATENCY_S),
    "request_prompt_tokens": ("Prompt tokens", TOKENS),
    "request_generation_tokens": ("Generated tokens", TOKENS),
    "request_max_num_generation_tokens": ("Generated tokens of the longest answer to a prompt", TOKENS),
    "request_params_n": ("Answers asked for", (1, 2, 5, 10, 20)),
    "request_params_max_tokens": ("Most tokens an answer was allowed", TOKENS),
    "request_num_preemptions": ("Times a request lost its place", (0, 1, 2, 5, 10, 20)),
    "request_prefill_kv_computed_tokens": ("Prompt tokens that were not found in the prefix cache", TOKENS),
}


def _bounds(name: str, given: Any) -> tuple[float, ...]:
    bounds: list[Any] = list(given) if isinstance(given, list | tuple) else []  # pyright: ignore
    numbers = [bound for bound in bounds if isinstance(bound, int | float)]
    if not numbers or len(numbers) < len(bounds) or numbers != sorted(set(numbers)):
        raise ConfigError(f"custom_histogram_buckets: {name} needs a list of rising numbers")
    return tuple(float(bound) for bound in numbers)


class Metrics(Collector):
    """Collects for one engine; `current` gives its name for clients and itself, or None while there is none."""

    def __init__(
        self,
        current: Callable[[], tuple[str, EngineClient] | None],
        *,
        compat: bool = True,
        buckets: Mapping[str, Any] | None = None,
    ) -> None:
        """compat: export the vllm: names too. buckets: histogram name -> its bounds, in place of ours."""
        self._current = current
        self._compat = compat
        self.lag = LoopLag()
        self.realtime_sessions = 0
        """Open now; see realtime."""
        self.live = LiveMetrics()
        self._first_sound = Histogram(FIRST_SOUND_S)
        self._finished: Counter[str] = Counter(dict.fromkeys(REASONS, 0))
        self._rejected: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._http_s: dict[tuple[str, str], Histogram] = {}
        self._received: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()
        self._histograms = {name: Histogram(bounds) for name, (_, bounds) in _REQUESTS.items()}
        for name, bounds in (buckets or {}).items():
            if name not in _REQUESTS:
                known = ", ".join(_REQUESTS)
                raise ConfigError(f"custom_histogram_buckets: there is no {name!r} to change; known: {known}")
            self._histograms[name] = Histogram(_bounds(name, bounds))
        self._gaps = self._histograms["inter_token_latency_seconds"]
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    # ---- what happened ---------------------------------------------------------------------------------------------

    def started(self, n: int, max_tokens: int) -> None:
        """Count a prompt that n answers of at most so many tokens are wanted to."""
        self._observe("request_params_n", n)
        self._observe("request_params_max_tokens", max_tokens)

    def gap(self, seconds: float, tokens: int) -> None:
        """Count tokens that came together, so long after the one before them."""
        self._gaps.observe(seconds)
        if tokens > 1:
            self._gaps.observe(0.0, tokens - 1)

    def finished(self, event: Finished) -> None:
        """Count one request that ran to its end."""
        timings, usage = event.timings, event.usage
        self._finished[event.reason] += 1
        self._observe("e2e_request_latency_seconds", timings.total_s)
        self._observe("request_queue_time_seconds", timings.queue_s)
        self._observe("request_prompt_tokens", usage.prompt_tokens)
        self._observe("request_prefill_kv_computed_tokens", usage.prompt_tokens - usage.cached_tokens)
        self._observe("request_generation_tokens", usage.completion_tokens)
        self._observe("request_num_preemptions", timings.preemptions)
        if timings.ttft_s is None:
            return
        decode_s, gaps = timings.total_s - timings.ttft_s, usage.completion_tokens - 1
        self._observe("time_to_first_token_seconds", timings.ttft_s)
        self._observe("request_prefill_time_seconds", timings.ttft_s - timings.queue_s)
        self._observe("request_decode_time_seconds", decode_s)
        self._observe("request_inference_time_seconds", timings.total_s - timings.queue_s)
        if gaps > 0:
            self._observe("request_time_per_output_token_seconds", decode_s / gaps)

    def first_sound(self, seconds: float) -> None:
        """Count a request that is spoken, so long after its arrival."""
        self._first_sound.observe(max(0.0, seconds))

    def answered_prompt(self, longest: int) -> None:
        """Count a prompt all of whose answers have ended; tokens of the longest."""
        self._observe("request_max_num_generation_tokens", longest)

    def cut(self, reason: str) -> None:
        """Count one request that did not run to its end: "error" or "abort"."""
        self._finished[reason] += 1

    def rejected(self, reason: str) -> None:
        """Count one request refused because there are too many."""
        self._rejected[reason] += 1

    def failed(self, code: str) -> None:
        """Count one HTTP request that ended in an error, with a status or in the middle of a stream."""
        self._errors[code] += 1

    def answered(self, method: str, handler: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Count one HTTP exchange; bytes of the bodies."""
        method = method if method in _METHODS else "other"
        self._requests[method, handler, str(status)] += 1
        key = method, handler
        if key not in self._http_s:
            self._http_s[key] = Histogram(HTTP_S)
        self._http_s[key].observe(seconds)
        self._received[handler] += received
        self._sent[handler] += sent

    def _observe(self, name: str, value: float, times: int = 1) -> None:
        self._histograms[name].observe(max(0.0, value), times)

    # ---- what is shown ---------------------------------------------------------------------------------------------

    async def render(self) -> bytes:
        """The text exposition format. Written family by family, so that streams go on meanwhile."""
        parts: list[bytes] = []
        for family in self._registry.collect():
            registry: Any = _Alone(family)
            parts.append(generate_latest(registry))
            await asyncio.sleep(0)
        return b"".join(parts)

    def collect(self) -> Iterator[Metric]:
        yield from self._http()
        current = self._current()
        if current is None or current[1].config.disable_log_stats:
            return
        name, client = current
        stats, media = client.stats(), client.media_stats()
        for prefix in (VLLM, OWN) if self._compat else (OWN,):
            make = Families(prefix, name)
            yield from compatible(make, client, stats, media)
            yield from self._shared(make)
        make = Families(OWN, name)
        yield from own(make, client, stats, media)
        yield make.counter("request_errors", "HTTP requests that ended in an error", _one_label(self._errors), "code")
        yield make.gauge("realtime_sessions", "Open realtime sessions", self.realtime_sessions)
        yield from self.live.collect(make)
        text = "Arrival of a request to its first sound"
        yield make.histogram("time_to_first_sound_seconds", text, FIRST_SOUND_S, self._first_sound.freeze())
        text = "How late the event loop of the server is"
        yield make.histogram("event_loop_lag_seconds", text, BOUNDS_S, self.lag.histogram.freeze())

    def _shared(self, make: Families) -> Iterator[Metric]:
        yield make.counter("request_success", "Ended requests", _one_label(self._finished), "finished_reason")
        text = "Requests refused because there are too many, by what is full"
        yield make.counter("admission_rejections", text, _one_label(self._rejected), "reason")
        for name, histogram in self._histograms.items():
            yield make.histogram(name, _REQUESTS[name][0], histogram.bounds, histogram.freeze())

    def _http(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("http_requests", "HTTP requests", labels=["method", "handler", "status"])
        for labels, count in self._requests.items():
            requests.add_metric(labels, count)
        yield requests
        seconds = HistogramMetricFamily("http_request_duration_seconds", "HTTP exchanges", labels=["method", "handler"])
        counts: Counter[str] = Counter()
        for labels, histogram in self._http_s.items():
            frozen = histogram.freeze()
            seconds.add_metric(labels, frozen.cumulative(histogram.bounds), frozen.sum)
            counts[labels[1]] += sum(frozen.counts)
        yield seconds
        for name, sizes in (("request", self._received), ("response", self._sent)):
            family = SummaryMetricFamily(f"http_{name}_size_bytes", f"Bytes of {name} bodies", labels=["handler"])
            for handler, size in sizes.items():
                family.add_metric([handler], counts[handler], size)
            yield family


class _Alone:
    """A registry of one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> list[Metric]:
        return [self._family]


def _one_label(counts: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(label,): count for label, count in counts.items()}
