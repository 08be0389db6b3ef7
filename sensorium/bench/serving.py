"""From what became of each request to the numbers of a load test."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sensorium.bench.http import Outcome
from sensorium.errors import ConfigError

METRICS = ("ttft", "tpot", "itl", "e2el")
"""Time to the first token; per token after it; between chunks; end to end. All in milliseconds."""


def read_goodput(pairs: Sequence[str]) -> dict[str, float]:
    """`ttft:500 itl:50` -> limits in milliseconds."""
    limits: dict[str, float] = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = -1.0
        if name not in METRICS or not limits[name] > 0:
            known = ", ".join(METRICS)
            raise ConfigError(
                f"goodput: {pair!r} is not one of {known} with milliseconds, as ttft:500", param="goodput"
            )
    return limits


def times_ms(outcome: Outcome) -> dict[str, list[float]]:
    """What a request that was answered adds to each metric."""
    first = outcome.ttft_s or 0.0
    after = outcome.completion_tokens - 1
    return {
        "ttft": [first * 1e3],
        "tpot": [(outcome.total_s - first) / after * 1e3] if after > 0 else [],
        "itl": [gap * 1e3 for gap in outcome.gaps_s],
        "e2el": [outcome.total_s * 1e3],
    }


def keeps(outcome: Outcome, limits: Mapping[str, float]) -> bool:
    """Whether an answer stays within all limits; of the gaps of a stream, their mean counts."""
    found = times_ms(outcome)
    return all(not found[name] or statistics.fmean(found[name]) <= limit for name, limit in limits.items())


def summarise(outcomes: Sequence[Outcome], percentiles: Sequence[float], limits: Mapping[str, float]) -> dict[str, Any]:
    """Totals, rates over the whole run, and one row for each metric."""
    answered = [outcome for outcome in outcomes if outcome.error is None]
    seconds = max((outcome.started_s + outcome.total_s for outcome in outcomes), default=0.0)
    inputs, outputs = (sum(getattr(o, name) for o in answered) for name in ("prompt_tokens", "completion_tokens"))
    rate = 1 / seconds if seconds else 0.0
    result: dict[str, Any] = {
        "completed": len(answered),
        "failed": len(outcomes) - len(answered),
        "duration_s": seconds,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "max_concurrent_requests": most_at_once(outcomes),
        "request_throughput": len(answered) * rate,
        "output_throughput": outputs * rate,
        "total_token_throughput": (inputs + outputs) * rate,
    }
    if limits:
        result["request_goodput"] = sum(keeps(outcome, limits) for outcome in answered) * rate
        result["goodput_limits_ms"] = dict(limits)
    if errors := sorted({outcome.error for outcome in outcomes if outcome.error is not None}):
        result["errors"] = errors[:5]
    found = [times_ms(outcome) for outcome in answered]
    result["rows"] = [_row(name, [v for times in found for v in times[name]], percentiles) for name in METRICS]
    return result


def most_at_once(outcomes: Sequence[Outcome]) -> int:
    """Requests under way at the busiest moment."""
    edges = [(o.started_s, 1) for o in outcomes] + [(o.started_s + o.total_s, -1) for o in outcomes]
    most = now = 0
    for _, change in sorted(edges):
        now += change
        most = max(most, now)
    return most


def _row(name: str, values: Sequence[float], percentiles: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"metric": f"{name}_ms", "mean": None, "median": None, "std": None} | {
            f"p{p:g}": None for p in percentiles
        }
    row: dict[str, Any] = {
        "metric": f"{name}_ms",
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "std": statistics.pstdev(values),
    }
    return row | {f"p{p:g}": float(np.percentile(values, p)) for p in percentiles}
