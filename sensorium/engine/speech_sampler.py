"""How the next code is chosen: the chain of the reference for many rows at once, with no branch on what is computed.

B rows · V codes · K candidates. Source: speech.md 1.4
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sensorium.engine.speech_rules import MIN_KEPT

NONE = -1
"""In place of a code: nothing yet (recent, forced), or logits that are not numbers (a pick)."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What the rows of a step are drawn with."""

    temperature: torch.Tensor
    """float32 [B, 1]"""
    penalty: torch.Tensor
    """float32 [B, 1]; 1 is none"""
    top_p: torch.Tensor
    """float32 [B, 1]; 1 is none"""
    top_k: torch.Tensor
    """int64 [B, 1], at least MIN_KEPT and, where the row is filtered, at most K"""
    filtered: torch.Tensor
    """bool [B, 1]: whether top_p and top_k apply"""
    greedy: torch.Tensor
    """bool [B]"""
    recent: torch.Tensor
    """int64 [B, window]: the codes that the penalty sees, NONE before the first"""
    no_end: torch.Tensor
    """bool [B]: the end may not be drawn"""
    uniform: torch.Tensor
    """float32 [B] in [0, 1): the row's random number"""
    forced: torch.Tensor
    """int64 [B]: the code to take in any case, or NONE"""


def probabilities(logits: torch.Tensor, draw: Draw, eos: int, candidates: int) -> torch.Tensor:
    """logits [B, V] -> float32 [B, V]. candidates K: how many top_p and top_k look at; 0 where no row is filtered."""
    scores = _penalise(logits.float() / draw.temperature, draw)
    if candidates:
        scores = scores.masked_fill(scores < _floor(scores, draw, candidates), -torch.inf)
    end = torch.arange(scores.shape[1], device=scores.device) == eos
    return scores.masked_fill(draw.no_end[:, None] & end, -torch.inf).softmax(-1)


def pick(logits: torch.Tensor, draw: Draw, eos: int, candidates: int) -> torch.Tensor:
    """The next code of each row, int64 [B]; NONE where the row's logits hold a NaN."""
    probs = probabilities(logits, draw, eos, candidates)
    sums = probs.cumsum(-1)
    # Sums of a parallel scan may shrink by a rounding, so what has no probability is excluded by itself.
    reached = (sums > draw.uniform[:, None] * sums[:, -1:]) & (probs > 0)
    picked = torch.where(draw.greedy, probs.argmax(-1), reached.int().argmax(-1))
    picked = torch.where(draw.forced >= 0, draw.forced, picked)
    return torch.where(probs[:, 0].isnan(), NONE, picked)


def _penalise(scores: torch.Tensor, draw: Draw) -> torch.Tensor:
    """A code that came f times lately loses: penalty^f divides what is positive and multiplies what is not."""
    recent, seen = draw.recent, draw.recent >= 0
    # Empty places stand for the latest code, or code 0, and count nothing: all that is written to one place is equal.
    codes = torch.where(seen, recent, recent[:, -1:].clamp(min=0))
    times = ((codes[:, :, None] == codes[:, None, :]) & seen[:, None, :]).sum(-1)
    old = scores.gather(1, codes)
    scale = draw.penalty**times
    return scores.scatter(1, codes, torch.where(old < 0, old * scale, old / scale))


def _floor(scores: torch.Tensor, draw: Draw, candidates: int) -> torch.Tensor:
    """The lowest score that stays, [B, 1]."""
    best = scores.topk(candidates, dim=-1).values
    shares = (best - scores.logsumexp(-1, keepdim=True)).exp()
    # Sorted downwards: a candidate stays while those before it hold less than top_p.
    kept = (shares.cumsum(-1) - shares < draw.top_p).sum(-1, keepdim=True).clamp(min=MIN_KEPT)
    floor = best.gather(1, torch.minimum(kept, draw.top_k).clamp(max=candidates) - 1)
    return torch.where(draw.filtered, floor, -torch.inf)
