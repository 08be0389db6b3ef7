"""Drawing tokens for several sessions at once, each by its own settings and its own random numbers.

M sessions · V vocabulary
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from sensorium.kernels.upload import upload


class Uniforms:
    """Random numbers from [0, 1), by number: setting `position` back repeats them."""

    def __init__(self, seed: int | None = None) -> None:
        self.position = 0
        self._seed = random.getrandbits(63) if seed is None else seed

    def __call__(self) -> float:
        self.position += 1
        return random.Random(f"{self._seed} {self.position}").random()


def candidates(
    scores: torch.Tensor, temperatures: Sequence[float], top_ks: Sequence[int], top_ps: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [M, V] -> ids and probabilities [M, n], likeliest first: temperature, top-k, top-p. 0: no filter."""
    size = scores.shape[1]
    counts = [min(k, size) if k else size for k in top_ks]
    kept, ids = (scores / _column(temperatures, scores)).topk(max(counts))
    if min(counts) < max(counts):
        ranks = torch.arange(max(counts), device=scores.device)
        kept = kept.masked_fill(ranks >= _column(counts, scores), -torch.inf)
    shares = kept.softmax(1)
    if any(0 < p < 1 for p in top_ps):
        limits = _column([p if 0 < p < 1 else 2.0 for p in top_ps], scores)
        # The token that crosses top_p stays.
        shares = shares.masked_fill(shares.cumsum(1) - shares > limits, 0.0)
        shares = shares / shares.sum(1, keepdim=True)
    return ids, shares


def pick(ids: torch.Tensor, shares: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """Ids [M] at the given numbers of [0, 1) of the cumulated probabilities [M, n]."""
    sums = shares.cumsum(1)
    at = torch.searchsorted(sums, _column(uniforms, shares) * sums[:, -1:], right=True)
    return ids.gather(1, at.clamp(max=ids.shape[1] - 1))[:, 0]


def divide_seen(scores: torch.Tensor, seen: Sequence[Sequence[int]], penalties: Sequence[float], signed: bool) -> None:
    """Penalise in place what was said before: `seen` names ids for each row of scores [M, V].

    Scores are divided by the penalty; with `signed` those below 0 are multiplied by it instead, so that both fall.
    """
    held = [row for row, ids in enumerate(seen) if len(ids) and penalties[row] != 1.0]
    if not held:
        return
    # An id may stand here twice: what is written is the same.
    counts = [len(seen[row]) for row in held]
    places = np.stack([np.repeat(held, counts), np.concatenate([np.asarray(seen[row], np.int64) for row in held])])
    rows, ids = upload(places, scores.device)
    factors = _column(penalties, scores)[rows, 0]
    found = scores[rows, ids]
    scores[rows, ids] = torch.where(found > 0, found / factors, found * factors) if signed else found / factors


def damp(scores: torch.Tensor, ids: Sequence[int], penalties: Sequence[float]) -> None:
    """Make ids likelier (penalty below 1) or less likely (above 1) in place, whatever the sign of scores [M, V]."""
    if all(penalty == 1.0 for penalty in penalties):
        return
    factors = _column(penalties, scores)
    for token_id in ids:
        found = scores[:, token_id : token_id + 1]
        found.copy_(torch.where(found > 0, found / factors, found * factors))


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return upload(np.asarray(values, np.float32), like.device)[:, None]
