"""When requests arrive: a pure function of how many, how often and the seed, so a run can be repeated."""

from __future__ import annotations

import math

import numpy as np

from sensorium.errors import ConfigError


def arrival_times(count: int, rate: float, burstiness: float = 1.0, seed: int = 0) -> list[float]:
    """Seconds from the start, ascending. rate: requests a second, inf is all at once.

    Gaps are gamma distributed with mean 1 / rate and shape `burstiness`: 1 is a Poisson process, below 1 requests come
    in bursts, above 1 more evenly, and inf is a constant rate.
    """
    if not rate > 0:
        raise ConfigError(f"request_rate must be above 0, or inf; not {rate:g}", param="request_rate")
    if not burstiness > 0:
        raise ConfigError(f"burstiness must be above 0, or inf; not {burstiness:g}", param="burstiness")
    if math.isinf(rate):
        return [0.0] * count
    if math.isinf(burstiness):
        return [index / rate for index in range(count)]
    gaps = np.random.default_rng(seed).gamma(burstiness, 1 / (rate * burstiness), max(count - 1, 0))
    return [0.0, *np.cumsum(gaps).tolist()][:count]
