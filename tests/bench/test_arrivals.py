"""When requests arrive."""

import math

import numpy as np
import pytest

from sensorium.bench.arrivals import arrival_times
from sensorium.errors import ConfigError


def gaps(burstiness: float, count: int = 4000) -> np.ndarray:
    return np.diff(arrival_times(count, rate=50, burstiness=burstiness, seed=3))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_of_the_rate_and_the_spread_of_the_burstiness(burstiness):
    found = gaps(burstiness)
    assert found.min() >= 0
    assert found.mean() == pytest.approx(1 / 50, rel=0.1)
    # A gamma distribution of shape k spreads by 1 / sqrt(k) of its mean.
    assert found.std() / found.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.1)


def test_the_same_seed_gives_the_same_times_and_another_gives_others():
    assert arrival_times(20, 5.0, seed=1) == arrival_times(20, 5.0, seed=1)
    assert arrival_times(20, 5.0, seed=1) != arrival_times(20, 5.0, seed=2)
    assert arrival_times(10, 5.0, seed=1) == arrival_times(20, 5.0, seed=1)[:10]


def test_infinite_rate_is_at_once_and_infinite_burstiness_is_even():
    assert arrival_times(3, math.inf) == [0, 0, 0]
    assert arrival_times(4, 2.0, math.inf) == [0, 0.5, 1.0, 1.5]
    assert arrival_times(0, 2.0) == []
    assert arrival_times(1, 2.0) == [0.0]


@pytest.mark.parametrize(("rate", "burstiness", "param"), [(0, 1, "request_rate"), (1, -1, "burstiness")])
def test_what_is_no_rate_is_refused_by_name(rate, burstiness, param):
    with pytest.raises(ConfigError) as refused:
        arrival_times(1, rate, burstiness)
    assert refused.value.param == param
