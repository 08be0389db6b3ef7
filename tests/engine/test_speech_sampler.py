"""The chain from logits to a code against the plain form of the reference's processors, one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sensorium.engine.speech_sampler import NONE, Draw, pick, probabilities

V, EOS = 80, 79


def draw(count: int, **changes: object) -> Draw:
    """Rows that all draw alike; what is left out does nothing."""
    plain = {
        "temperature": 1.0, "penalty": 1.0, "top_p": 1.0, "top_k": V, "filtered": False, "greedy": False,
        "recent": [NONE] * 16, "no_end": False, "uniform": 0.5, "forced": NONE,
    }  # fmt: skip
    rows = {name: torch.tensor([value] * count) for name, value in (plain | changes).items()}
    for name in ("temperature", "penalty", "top_p", "top_k", "filtered"):
        rows[name] = rows[name][:, None]
    return Draw(**rows)


def reference(logits: np.ndarray, temperature: float, penalty: float, top_p: float, top_k: int, recent: list[int]):
    """One row in float64, as written in the processors: penalty by count, ascending sort for top_p, then top_k."""
    scores = logits.astype(np.float64) / temperature
    for code in set(recent) - {NONE}:
        scale = penalty ** recent.count(code)
        scores[code] = scores[code] * scale if scores[code] < 0 else scores[code] / scale
    order = np.argsort(scores)
    shares = np.exp(scores[order]) / np.exp(scores).sum()
    drop = np.cumsum(shares) <= 1 - top_p
    drop[-3:] = False
    scores[order[drop]] = -np.inf
    scores[scores < np.sort(scores)[-max(top_k, 3)]] = -np.inf
    shares = np.exp(scores)
    return shares / shares.sum()


@pytest.mark.parametrize("candidates", [32, V])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.85, 1.0])
@pytest.mark.parametrize("top_k", [3, 5, 25])
def test_penalty_and_filters_follow_the_reference(candidates, top_p, top_k):
    generator = np.random.default_rng(round(top_p * 100) + top_k)
    logits = generator.normal(0, 3, (6, V)).astype(np.float32)
    recent = [NONE] * 3 + [5, 5, 5, 8, 9, 9, 1, 2, 3, 5, 70, 71, 8]
    logits[0, 5], logits[1, 5] = 9.0, -9.0
    row = {"temperature": 0.8, "penalty": 1.3, "top_p": top_p, "top_k": top_k, "filtered": True, "recent": recent}
    probs = probabilities(torch.from_numpy(logits), draw(6, **row), EOS, candidates)
    for got, one in zip(probs.numpy(), logits, strict=True):
        np.testing.assert_allclose(got, reference(one, 0.8, 1.3, top_p, top_k, recent), atol=2e-6)


def test_rows_without_filters_are_plain_beside_others():
    logits = torch.randn(2, V, generator=torch.Generator().manual_seed(0))
    rows = draw(2, temperature=0.7, top_k=5, top_p=0.3)
    rows.filtered[0] = True
    probs = probabilities(logits, rows, EOS, 32)
    assert (probs[0] > 0).sum() == 3
    torch.testing.assert_close(probs[1], (logits[1] / 0.7).softmax(-1))


def test_draws_come_as_often_as_is_likely():
    count = 20_000
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(3)).expand(count, V) * 2
    rows = draw(count)
    rows.uniform[:] = (torch.arange(count) + 0.5) / count
    picked = torch.bincount(pick(logits, rows, EOS, 0), minlength=V) / count
    torch.testing.assert_close(picked, logits[0].softmax(-1), rtol=0, atol=1.5 / count)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_the_ends_of_the_interval_draw_only_what_is_possible(uniform):
    logits = torch.full((1, V), -torch.inf)
    logits[0, [7, 30]] = 1.0
    assert pick(logits, draw(1, uniform=uniform, no_end=True), EOS, 0).item() == (7 if uniform == 0 else 30)


def test_greedy_forced_masked_and_broken_rows():
    logits = torch.zeros(4, V)
    logits[:, EOS], logits[:, 3] = 9.0, 5.0
    logits[3, 11] = torch.nan
    rows = draw(4, greedy=True)
    rows.no_end[1:3] = True
    rows.forced[2] = 44
    assert pick(logits, rows, EOS, 0).tolist() == [EOS, 3, 44, NONE]
