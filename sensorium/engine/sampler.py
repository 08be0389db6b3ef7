"""Chooses next tokens from logits. One uniform number per row and step, drawn from the row's own generator, so a
sequence's tokens do not depend on its neighbours.

Shapes: M rows (sequences that sample in this step) · V vocabulary.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import torch

from sensorium.types import SamplingParams, TokenLogprob

_GREEDY_BELOW = 1e-5
_NARROW = 128
# The largest uniform number whose product with any float32 total stays below that total.
_BELOW_ONE = 1 - 2**-22


@dataclass(slots=True)
class SampleState:
    """What sampling remembers of one sequence: its random numbers and the tokens that penalties count."""

    params: SamplingParams
    prompt_ids: tuple[int, ...]
    barred: tuple[int, ...]
    """Token ids that min_tokens keeps from being chosen: the ends of a text."""
    rng: random.Random = field(init=False)
    counts: Counter[int] = field(default_factory=Counter)
    num_generated: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.params.seed)

    @property
    def is_greedy(self) -> bool:
        return self.params.temperature < _GREEDY_BELOW

    @property
    def sorts(self) -> bool:
        """Whether choosing needs the tokens in order of probability."""
        return self.params.top_k > 0 or self.params.top_p < 1

    @property
    def edits_logits(self) -> bool:
        p = self.params
        return bool(
            p.repetition_penalty != 1.0
            or p.presence_penalty
            or p.frequency_penalty
            or p.logit_bias
            or self.num_generated < p.min_tokens
        )

    def record(self, token: int) -> None:
        self.counts[token] += 1
        self.num_generated += 1


def sample(logits: torch.Tensor, states: list[SampleState]) -> list[tuple[int, TokenLogprob | None] | None]:
    """Next token of each row of logits [M, V], with its log-probability where asked for.

    A row whose logits hold a NaN yields None. Log-probabilities describe the model's own distribution, before
    penalties and temperature.
    """
    logits = logits.float()
    raw = logits
    if any(state.edits_logits for state in states):
        logits = logits.clone()
        for row, state in enumerate(states):
            if state.edits_logits:
                _edit(logits[row], state)
    best, greedy = logits.max(dim=-1)
    chosen = greedy.clone()
    for sorts in (False, True):  # apart, so that a row's draw does not depend on what its neighbours ask for
        rows = [row for row, state in enumerate(states) if not state.is_greedy and state.sorts == sorts]
        if rows:
            part = logits if len(rows) == len(states) else logits[rows]
            chosen[rows] = _draw(part, [states[row] for row in rows], sorts)
    broken = torch.isnan(best).tolist()
    tokens = chosen.tolist()
    logprobs = _logprobs(raw, tokens, states)
    results: list[tuple[int, TokenLogprob | None] | None] = []
    for row, state in enumerate(states):
        if broken[row]:
            results.append(None)
            continue
        state.record(tokens[row])
        results.append((tokens[row], logprobs.get(row)))
    return results


def _edit(row: torch.Tensor, state: SampleState) -> None:
    """Apply bias, min_tokens and penalties to one row [V] in place."""
    p = state.params
    seen = set(state.counts)
    if p.repetition_penalty != 1.0:
        ids = seen.union(state.prompt_ids) if p.penalize_prompt else seen
        if ids:
            index = torch.tensor(sorted(ids), device=row.device)
            values = row[index]
            row[index] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
    if seen and (p.presence_penalty or p.frequency_penalty):
        index = torch.tensor(list(state.counts), device=row.device)
        counts = torch.tensor(list(state.counts.values()), device=row.device, dtype=row.dtype)
        row[index] -= p.presence_penalty + p.frequency_penalty * counts
    if p.logit_bias:
        index = torch.tensor(list(p.logit_bias), device=row.device)
        row[index] += torch.tensor(list(p.logit_bias.values()), device=row.device, dtype=row.dtype)
    if state.num_generated < p.min_tokens and state.barred:
        row[torch.tensor(state.barred, device=row.device)] = -torch.inf


def _draw(logits: torch.Tensor, states: list[SampleState], sorts: bool) -> torch.Tensor:
    """Sample rows [m, V] by inverting the cumulative distribution at one uniform number each."""
    params = [state.params for state in states]
    uniform = _column([min(state.rng.random(), _BELOW_ONE) for state in states], logits)
    logits = logits / _column([p.temperature for p in params], logits)
    if any(p.min_p > 0 for p in params):
        floor = logits.amax(-1, keepdim=True) + _column([max(p.min_p, 1e-30) for p in params], logits).log()
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if not sorts:
        return _invert(logits.softmax(-1).cumsum(-1), uniform)
    chosen = torch.full((len(states),), -1, device=logits.device)
    if logits.shape[-1] > _NARROW:
        # Sorting a whole vocabulary costs far more than its top, which nearly always holds all that may be chosen.
        chosen = _draw_from_top(logits, params, uniform, _NARROW)
    left = (chosen < 0).nonzero()[:, 0]
    if len(left):
        rest = [params[row] for row in left.tolist()]
        chosen[left] = _draw_from_top(logits[left], rest, uniform[left], logits.shape[-1])
    return chosen


def _draw_from_top(
    logits: torch.Tensor, params: list[SamplingParams], uniform: torch.Tensor, width: int
) -> torch.Tensor:
    """Sample among the `width` likeliest tokens; -1 for rows whose top_k or top_p reaches beyond them."""
    vocab = logits.shape[-1]
    top_k = _column([p.top_k if p.top_k > 0 else vocab for p in params], logits, torch.int64)
    top_p = _column([p.top_p for p in params], logits)
    top, order = logits.topk(width, dim=-1) if width < vocab else logits.sort(dim=-1, descending=True)
    top = top.masked_fill(torch.arange(width, device=logits.device) >= top_k, -torch.inf)
    mass = torch.where(top_k <= width, top.logsumexp(-1, keepdim=True), logits.logsumexp(-1, keepdim=True))
    probs = (top - mass).exp()
    cumulative = probs.cumsum(-1)
    # A token stays if the mass before it is below top_p, so the first always stays.
    num_kept = (cumulative - probs < top_p).sum(-1, keepdim=True)
    inside = (num_kept < width) | (top_k <= width) | (width == vocab)
    cumulative = cumulative.minimum(cumulative.gather(-1, num_kept - 1))
    chosen = order.gather(-1, _invert(cumulative, uniform)[:, None])
    return torch.where(inside, chosen, -1)[:, 0]


def _invert(cumulative: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index of the first token whose cumulative mass exceeds uniform x total; it has mass itself. -> [m]."""
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]


def _column(values: list[float] | list[int], like: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def _logprobs(raw: torch.Tensor, tokens: list[int], states: list[SampleState]) -> dict[int, TokenLogprob]:
    rows = [row for row, state in enumerate(states) if state.params.logprobs is not None]
    if not rows:
        return {}
    table = raw[rows].log_softmax(-1)
    found = {}
    for at, row in enumerate(rows):
        count = min(states[row].params.logprobs or 0, table.shape[-1])
        values, ids = table[at].topk(count)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        found[row] = TokenLogprob(tokens[row], table[at, tokens[row]].item(), top)
    return found
