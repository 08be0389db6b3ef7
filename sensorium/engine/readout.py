"""What is read off a step's hidden rows: next tokens, log-probabilities of prompts, embeddings.

Shapes: N rows of one sequence's chunk · E width · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
import torch

from sensorium.config import LogprobsMode
from sensorium.engine.deciding import Deciders
from sensorium.engine.pooling import Pool, Pooler
from sensorium.engine.sampler import Sampled, SampleState, Unsampled, sample
from sensorium.engine.scheduler import Work
from sensorium.engine.sequence import Sequence
from sensorium.kernels.upload import upload
from sensorium.models.base import Model
from sensorium.types import Decision, SamplingParams, TokenLogprob

_SCORED_ROWS = 64
"""Rows of logits that exist at once while a prompt is scored: 37 MiB at 150,000 tokens."""


@dataclass(slots=True)
class _Scores:
    """Log-probabilities of a prompt's first tokens; the very first has none."""

    entries: list[TokenLogprob | None] = field(default_factory=lambda: [None])


class Readout:
    """Owns what a sequence accumulates over steps: sampling state, prompt scores, rows to pool."""

    def __init__(self, model: Model, pooler: Pooler | None = None, mode: LogprobsMode = "raw_logprobs") -> None:
        self.pooler = pooler
        self.states: dict[str, SampleState] = {}
        self.deciders = Deciders()
        """Of sessions, which have no sampling state here."""
        self._model = model
        self._mode: LogprobsMode = mode
        self._scores: dict[str, _Scores] = {}
        self._pools: dict[str, Pool] = {}
        self._spoken: dict[str, list[torch.Tensor]] = {}
        """Of sequences that speak: hidden rows [E] that nobody has taken yet."""
        self._recites: set[str] = set()
        """Those that speak their prompts, which are not computed yet."""

    def open(self, seq: Sequence, state: SampleState) -> None:
        """Called once for every sequence, before its first step."""
        self.states[seq.id] = state
        if seq.request.pooling is not None and self.pooler is not None:
            self._pools[seq.id] = self.pooler.pool(seq.request.pooling)
            seq.needs_every_row = self._pools[seq.id].needs_every_row
        elif state.params.prompt_logprobs is not None:
            self._scores[seq.id] = _Scores()
            seq.needs_every_row = True
        if (speech := seq.request.speech) is not None:
            self._spoken[seq.id] = []
            if speech.spoken_prompt:
                self._recites.add(seq.id)
                seq.needs_every_row = True

    def forget(self, seq_id: str) -> None:
        for kept in (self.states, self._scores, self._pools, self._spoken):
            kept.pop(seq_id, None)
        self._recites.discard(seq_id)

    def speaks(self, seq_id: str) -> bool:
        """Whether the sequence's hidden rows are wanted."""
        return seq_id in self._spoken

    def take_spoken(self, seq_id: str) -> list[torch.Tensor]:
        """Final-norm hidden states [E] of generated tokens, in order, each once; or those of the prompt's end."""
        rows, self._spoken[seq_id] = self._spoken[seq_id], []
        return rows

    @property
    def is_observing(self) -> bool:
        """Whether some sequence needs more of a step's rows than those that tokens are chosen from."""
        return bool(self._scores or self._pools or self._recites)

    def observe(self, works: Seq[Work], hidden: torch.Tensor) -> None:
        """Take what is accumulated from all rows [N of all works, E] of a step."""
        offset = 0
        for work in works:
            rows = hidden[offset : offset + work.count]
            offset += work.count
            if (pool := self._pools.get(work.seq.id)) is not None:
                pool.add(rows, work.start)
            elif (scores := self._scores.get(work.seq.id)) is not None:
                self._score(work, rows, scores)
            if work.seq.id in self._recites:
                self._recite(work, rows)

    def _recite(self, work: Work, rows: torch.Tensor) -> None:
        """Keep the rows of the prompt's end, which is spoken."""
        seq, kept = work.seq, self._spoken[work.seq.id]
        assert seq.request.speech is not None
        first = seq.prompt_len - seq.request.speech.spoken_prompt
        start = max(work.start, first)
        del kept[start - first :]  # a preempted prompt is computed again from its beginning
        kept += rows[start - work.start : max(seq.prompt_len, start) - work.start].clone().unbind()
        if work.start + work.count >= seq.prompt_len:
            self._recites.discard(seq.id)
            seq.needs_every_row = seq.id in self._scores

    def choose(
        self, seqs: Seq[Sequence], logits: torch.Tensor, hidden: torch.Tensor, likeliest: torch.Tensor | None = None
    ) -> dict[str, Sampled | Unsampled | Decision]:
        """What comes next by logits [M, V], a row per sequence, and for sessions hidden [M, E].

        likeliest [M]: as Graphs return them, if known.
        """
        if self.deciders and (rows := [row for row, seq in enumerate(seqs) if seq.resident]):
            return self._choose_apart(seqs, rows, logits, hidden, likeliest)
        for row, seq in enumerate(seqs) if self._spoken else ():
            speech = seq.request.speech
            if speech is not None and seq.num_generated and not speech.spoken_prompt:
                self._spoken[seq.id].append(hidden[row].clone())
        states = [self.states[seq.id] for seq in seqs]
        if likeliest is not None and all(state.takes_likeliest for state in states):
            results = [state.take(token) for state, token in zip(states, likeliest.tolist(), strict=True)]
        else:
            results = sample(logits, states, self._mode)
        return {seq.id: result for seq, result in zip(seqs, results, strict=True)}

    def _choose_apart(
        self,
        seqs: Seq[Sequence],
        rows: list[int],
        logits: torch.Tensor,
        hidden: torch.Tensor,
        likeliest: torch.Tensor | None,
    ) -> dict[str, Sampled | Unsampled | Decision]:
        """`rows` belong to sessions, whose policies decide; the others are sampled."""
        ids = [seqs[row].id for row in rows]
        chosen: dict[str, Sampled | Unsampled | Decision] = {}
        if others := [row for row, seq in enumerate(seqs) if not seq.resident]:
            apart, ours = upload(others, logits.device), upload(rows, logits.device)
            part = None if likeliest is None else likeliest[apart]
            chosen |= self.choose([seqs[row] for row in others], logits[apart], hidden[apart], part)
            logits, hidden = logits[ours], hidden[ours]
        return chosen | dict(zip(ids, self.deciders.decide(ids, logits, hidden), strict=True))

    def take_scores(self, seq: Sequence) -> tuple[TokenLogprob | None, ...] | None:
        """The prompt's log-probabilities, once, when all of it is computed; None where nobody asked."""
        scores = self._scores.pop(seq.id, None) if self._scores else None
        if scores is None:
            return None
        seq.needs_every_row = False
        return tuple(scores.entries)

    def take_pooled(self, seq: Sequence) -> np.ndarray:
        return self._pools.pop(seq.id).result()

    def _score(self, work: Work, rows: torch.Tensor, scores: _Scores) -> None:
        seq, params = work.seq, work.seq.request.sampling
        del scores.entries[work.start + 1 :]  # a preempted prompt is computed again from its beginning
        count = min(work.count, seq.prompt_len - 1 - work.start)
        for start in range(0, count, _SCORED_ROWS):
            stop = min(start + _SCORED_ROWS, count)
            targets = seq.ids[work.start + start + 1 : work.start + stop + 1]
            scores.entries += score_rows(self._model.logits(rows[start:stop]), targets, params, self._mode)


def score_rows(
    logits: torch.Tensor, targets: Seq[int], params: SamplingParams, mode: LogprobsMode
) -> list[TokenLogprob]:
    """The log-probability of targets[i] under row i of logits [N, V], with the likeliest tokens beside it."""
    values = logits.float()
    if not mode.endswith("logits"):
        values = values.log_softmax(-1)
    wanted = params.prompt_logprobs or 0
    wanted = values.shape[1] if wanted < 0 else min(wanted, values.shape[1])
    top, ids = values.topk(wanted, dim=-1)
    own = values.gather(-1, torch.tensor(targets, device=values.device)[:, None])
    ranks = (values > own).sum(-1) + 1
    named = params.logprob_token_ids
    extra = values[:, torch.tensor(named, device=values.device)].tolist() if named else [[]] * len(targets)
    columns = zip(targets, own[:, 0].tolist(), ids.tolist(), top.tolist(), extra, ranks.tolist(), strict=True)
    return [
        TokenLogprob(token, value, (*zip(row_ids, row, strict=True), *zip(named, more, strict=True)), rank)
        for token, value, row_ids, row, more, rank in columns
    ]
