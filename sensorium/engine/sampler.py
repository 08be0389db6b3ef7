"""Chooses next tokens from logits. One uniform number per row and step, drawn from the row's own generator, so a
sequence's tokens do not depend on its neighbours.

Shapes: M rows (sequences that sample in this step) · V vocabulary.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import torch

from sensorium.config import LogprobsMode
from sensorium.engine.grammar import Matcher
from sensorium.engine.rules import BadWords, ThinkingBudget
from sensorium.types import SamplingParams, TokenLogprob

_NARROW = 128
# The largest uniform number whose product with any float32 total stays below that total.
_BELOW_ONE = 1 - 2**-22
Sampled = tuple[int, TokenLogprob | None]


@dataclass(frozen=True, slots=True)
class Unsampled:
    """Why a row has no next token."""

    message: str
    code: str
    status: int
    param: str | None = None


NOT_A_NUMBER = Unsampled("the model produced a value that is not a number", "engine_error", 500)
NOTHING_LEFT = Unsampled(
    "structured_outputs, allowed_token_ids and bad_words leave no token that may come next", "invalid_request", 400
)


@dataclass(slots=True)
class SampleState:
    """What sampling remembers of one sequence: its random numbers, the tokens that penalties count, and its rules."""

    params: SamplingParams
    prompt_ids: tuple[int, ...]
    barred: tuple[int, ...]
    """Token ids that min_tokens keeps from being chosen: the ends of a text."""
    matcher: Matcher | None = None
    bad_words: BadWords | None = None
    thinking: ThinkingBudget | None = None
    counts: Counter[int] = field(default_factory=Counter)
    num_generated: int = 0
    _always_edits: bool = field(init=False)
    _rng: random.Random | None = None
    _closed: torch.Tensor | None = None
    """[V], true where allowed_token_ids forbids a token."""

    def __post_init__(self) -> None:
        p = self.params
        self._always_edits = bool(
            p.repetition_penalty != 1.0
            or p.presence_penalty
            or p.frequency_penalty
            or p.logit_bias
            or p.allowed_token_ids is not None
            or self.matcher
            or self.bad_words
            or self.thinking
        )

    @property
    def rng(self) -> random.Random:
        if self._rng is None:  # seeding one takes longer than all else here, and most are greedy
            self._rng = random.Random(self.params.seed)
        return self._rng

    @rng.setter
    def rng(self, rng: random.Random) -> None:
        self._rng = rng

    @property
    def is_greedy(self) -> bool:
        return self.params.is_greedy

    @property
    def takes_likeliest(self) -> bool:
        """Whether the next token is the largest raw logit and nothing else is asked for."""
        return self.is_greedy and not self.wants_logprobs and not self.edits_logits

    @property
    def sorts(self) -> bool:
        """Whether choosing needs the tokens in order of probability."""
        return self.params.top_k > 0 or self.params.top_p < 1

    @property
    def edits_logits(self) -> bool:
        return self._always_edits or self.num_generated < self.params.min_tokens

    @property
    def wants_logprobs(self) -> bool:
        return self.params.logprobs is not None or bool(self.params.logprob_token_ids)

    def closed(self, row: torch.Tensor) -> torch.Tensor:
        if self._closed is None:
            self._closed = torch.ones(row.shape, dtype=torch.bool, device=row.device)
            self._closed[torch.tensor(self.params.allowed_token_ids, device=row.device)] = False
        return self._closed

    def take(self, token: int) -> Sampled | Unsampled:
        """The likeliest token, found on the device; -1 stands for a NaN."""
        if token < 0:
            return NOT_A_NUMBER
        self.record(token)
        return token, None

    def record(self, token: int) -> None:
        self.counts[token] += 1
        self.num_generated += 1
        if self._always_edits:
            for rule in (self.matcher, self.bad_words, self.thinking):
                if rule is not None:
                    rule.accept(token)


def sample(
    logits: torch.Tensor, states: list[SampleState], mode: LogprobsMode = "raw_logprobs"
) -> list[Sampled | Unsampled]:
    """Next token of each row of logits [M, V], with its log-probability where asked for; else why there is none.

    mode: whether log-probabilities (or logits) describe the model's own distribution or the one drawn from.
    """
    logits = logits.float()
    raw = logits
    edited = [row for row, state in enumerate(states) if state.edits_logits]
    if edited:
        logits = logits.clone()
        for row in edited:
            _edit(logits[row], states[row])
    best, greedy = logits.max(dim=-1)
    chosen = greedy.clone()
    for sorts in (False, True):  # apart, so that a row's draw does not depend on what its neighbours ask for
        rows = [row for row, state in enumerate(states) if not state.is_greedy and state.sorts == sorts]
        if rows:
            part = logits if len(rows) == len(states) else logits[rows]
            chosen[rows] = _draw(part, [states[row] for row in rows], sorts)
    peaks = best.tolist()
    tokens = chosen.tolist()
    results: list[Sampled | Unsampled] = []
    for row, state in enumerate(states):
        if peaks[row] != peaks[row]:
            results.append(NOT_A_NUMBER)
        elif peaks[row] == float("-inf"):
            results.append(NOTHING_LEFT)
        else:
            logprob = None
            if state.wants_logprobs:
                logprob = describe(_described(raw[row], logits[row], state, mode), tokens[row], state.params)
            state.record(tokens[row])
            results.append((tokens[row], logprob))
    return results


# ---- before the choice --------------------------------------------------------------------------------------------


def _edit(row: torch.Tensor, state: SampleState) -> None:
    """Apply everything but temperature and truncation to one row [V] in place, in the order docs/sampling.md gives."""
    p = state.params
    if state.thinking is not None and (forced := state.thinking.forced()) is not None:
        kept = row[forced].item()
        row.fill_(-torch.inf)
        row[forced] = kept
        return
    if state.matcher is not None and (closed := state.matcher.closed(row.shape[0])) is not None:
        row.masked_fill_(torch.from_numpy(closed).to(row.device), -torch.inf)
    if p.allowed_token_ids is not None:
        row.masked_fill_(state.closed(row), -torch.inf)
    if state.bad_words is not None and (barred := state.bad_words.barred()):
        row[torch.tensor(barred, device=row.device)] = -torch.inf
    if state.num_generated < p.min_tokens and state.barred:
        row[torch.tensor(state.barred, device=row.device)] = -torch.inf
    if p.logit_bias:
        index = torch.tensor(list(p.logit_bias), device=row.device)
        row[index] += torch.tensor(list(p.logit_bias.values()), device=row.device, dtype=row.dtype)
    _penalise(row, state)


def _penalise(row: torch.Tensor, state: SampleState) -> None:
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


# ---- the choice ---------------------------------------------------------------------------------------------------


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
    cumulative = cumulative.minimum(cumulative.gather(-1, num_kept.clamp(min=1) - 1))
    chosen = order.gather(-1, _invert(cumulative, uniform).clamp(max=width - 1)[:, None])
    return torch.where(inside, chosen, -1)[:, 0]


def _invert(cumulative: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index of the first token whose cumulative mass exceeds uniform x total; it has mass itself. -> [m]."""
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]


def _column(values: list[float] | list[int], like: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


# ---- log-probabilities --------------------------------------------------------------------------------------------


def describe(values: torch.Tensor, token: int, params: SamplingParams, count: int | None = None) -> TokenLogprob:
    """A token's value among values [V], its rank, the likeliest `count` (by default params.logprobs), the named ids."""
    wanted = (params.logprobs or 0) if count is None else count
    wanted = values.shape[0] if wanted < 0 else min(wanted, values.shape[0])
    top, ids = values.topk(wanted)
    pairs = list(zip(ids.tolist(), top.tolist(), strict=True))
    if params.logprob_token_ids:
        named = values[torch.tensor(params.logprob_token_ids, device=values.device)].tolist()
        pairs += zip(params.logprob_token_ids, named, strict=True)
    own = values[token]
    return TokenLogprob(token, own.item(), tuple(pairs), int((values > own).sum().item()) + 1)


def _described(raw: torch.Tensor, edited: torch.Tensor, state: SampleState, mode: LogprobsMode) -> torch.Tensor:
    """The values [V] that a row's log-probabilities report."""
    if mode.startswith("raw"):
        values = raw
    else:
        values = edited if state.is_greedy else _truncated(edited / state.params.temperature, state.params)
    return values if mode.endswith("logits") else values.log_softmax(-1)


def _truncated(row: torch.Tensor, p: SamplingParams) -> torch.Tensor:
    """A row [V] with everything that min_p, top_k and top_p drop at minus infinity."""
    if p.min_p > 0:
        row = row.masked_fill(row < row.max() + torch.tensor(p.min_p).log().item(), -torch.inf)
    ordered, order = row.sort(descending=True)
    if p.top_k > 0:
        ordered[p.top_k :] = -torch.inf
    probs = ordered.softmax(-1)
    ordered[probs.cumsum(-1) - probs >= p.top_p] = -torch.inf
    return torch.empty_like(row).scatter_(0, order, ordered)
