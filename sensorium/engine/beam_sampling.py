"""Beam search that draws its candidates from the probabilities of all beams, as transformers does with do_sample."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from sensorium.engine.beam import BeamSearch, Path, Ranked
from sensorium.types import BeamSearchParams, SamplingParams


class BeamSampling(BeamSearch):
    """A beam search whose candidates are drawn without replacement.

    Of every beam's tokens those that top_k and top_p leave count, with their log-probabilities divided by the
    temperature; a beam's score is the sum of those.
    """

    def __init__(
        self,
        params: BeamSearchParams,
        max_tokens: int,
        ends: frozenset[int],
        sampling: SamplingParams,
        noise: Callable[[], float] | None = None,
    ) -> None:
        """sampling: temperature, top_k, top_p and seed. noise: draws of the standard Gumbel distribution."""
        super().__init__(params, max_tokens, ends)
        self._sampling = sampling
        self._noise = noise or _gumbel(random.Random(sampling.seed))
        # As many as transformers draws and keeps: room for every beam to end in every way and still go on.
        self._spare = max(2, 1 + len(ends))

    def num_wanted(self, path: Path) -> int:
        if self._sampling.top_k < 1:
            return 1 << 31
        return max(self._sampling.top_k, self._spare) + len(set(path.ids))

    def _chosen(self, ranked: Sequence[Ranked]) -> list[Path]:
        found = [
            candidate for path, tokens in zip(self.live, ranked, strict=True) for candidate in self._of(path, tokens)
        ]
        # The largest of logarithm plus Gumbel noise are draws without replacement.
        drawn = sorted(found, key=lambda path: path.logprob + self._noise(), reverse=True)
        drawn = drawn[: self._spare * self._params.beam_width]
        return sorted(drawn, key=lambda path: path.logprob, reverse=True)

    def _of(self, path: Path, tokens: Ranked) -> list[Path]:
        """One beam's candidates."""
        scored = [(own / self._sampling.temperature, token) for token, own in self._penalized(path, tokens)]
        scored.sort(reverse=True)
        if self._sampling.top_k > 0:
            scored = scored[: max(self._sampling.top_k, self._spare)]
        if self._sampling.top_p < 1:
            top = scored[0][0]
            weights = [math.exp(score - top) for score, _ in scored]
            total, before, kept = sum(weights), 0.0, 0
            for weight in weights:
                if before >= self._sampling.top_p * total and kept >= self._spare:
                    break
                before += weight
                kept += 1
            scored = scored[:kept]
        return [Path((*path.ids, token), path.logprob + score) for score, token in scored]


def _gumbel(source: random.Random) -> Callable[[], float]:
    def draw() -> float:
        uniform = source.random() or 2.0**-53
        return -math.log(-math.log(uniform))

    return draw
