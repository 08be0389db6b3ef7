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

    def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)[:, None]

    params = [state.params for state in states]
    uniform = column([state.rng.random() for state in states])
    logits = logits / column([p.temperature for p in params])
    if any(p.min_p > 0 for p in params):
        floor = logits.amax(-1, keepdim=True) + column([max(p.min_p, 1e-30) for p in params]).log()
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if not sorts:
        return _invert(logits.softmax(-1), uniform)
    logits, order = logits.sort(dim=-1, descending=True)
    if any(p.top_k > 0 for p in params):
        vocab = logits.shape[-1]
        limit = column([p.top_k if p.top_k > 0 else vocab for p in params], torch.int64)
        logits = logits.masked_fill(torch.arange(vocab, device=logits.device) >= limit, -torch.inf)
    probs = logits.softmax(-1)
    if any(p.top_p < 1 for p in params):
        # A token stays if the mass before it is below top_p, so the first always stays.
        before = probs.cumsum(-1) - probs
        probs = probs.masked_fill(before >= column([p.top_p for p in params]), 0.0)
    return order.gather(-1, _invert(probs, uniform)[:, None])[:, 0]


def _invert(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index of the first token whose cumulative mass exceeds uniform x total. probs [m, V], uniform [m, 1]."""
    cumulative = probs.cumsum(-1)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    # Rounding may point past the last token with mass; step back to it.
    last = probs.shape[-1] - 1 - (probs.flip(-1) > 0).int().argmax(-1, keepdim=True)
    return torch.minimum(index, last)[:, 0]


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
