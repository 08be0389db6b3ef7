"""MiniCPM-o's turn-based sessions: what replies are made of, how they reach the speech LM, what the window drops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch

from sensorium.errors import CheckpointError, RequestError
from sensorium.models.minicpm_draw import Uniforms, candidates, damp, divide_seen, pick
from sensorium.models.minicpm_duplex_sampler import check_number
from sensorium.models.minicpm_duplex_tokens import bad_token_ids
from sensorium.models.tokenizer import Tokenizer
from sensorium.types import Decision, Outcome, SamplingParams, Splice, Unit

GROUP = 10
"""Tokens of text that go to the speech LM at once."""
PENALISED = 128
"""Tokens before a group that the repetition penalty sees too."""
_NOT_SPOKEN = ":#@*()[]&/$"
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class TurnOptions:
    """What a session is opened with. protect_opening: the opening prompt is never dropped by the window."""

    window_high_tokens: int = 8000
    window_low_tokens: int = 6000
    protect_opening: bool = True

    def __post_init__(self) -> None:
        check_number("window_high_tokens", self.window_high_tokens, positive=True, whole=True)
        check_number("window_low_tokens", self.window_low_tokens, whole=True)
        if self.window_low_tokens > self.window_high_tokens:
            raise RequestError("window_low_tokens is above window_high_tokens", param="window_low_tokens")


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """The arguments of streaming_generate, with the defaults of the released code, for units that are replies.

    forced_ids: the reply itself, where it is not the model's (teacher forcing). reply=False marks a piece of a turn.
    """

    reply: bool = True
    max_new_tokens: int = 256
    do_sample: bool = True
    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 100
    repetition_penalty: float = 1.02
    length_penalty: float = 1.0
    forced_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("temperature", "repetition_penalty", "length_penalty"):
            check_number(name, getattr(self, name), positive=True)
        check_number("top_p", self.top_p)
        check_number("top_k", self.top_k, whole=True)
        check_number("max_new_tokens", self.max_new_tokens, positive=True, whole=True)

    @property
    def longest(self) -> int:
        """Tokens of the longest reply: whole groups."""
        return math.ceil(self.max_new_tokens / GROUP) * GROUP


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where a session stood after unit `index`, for rewind()."""

    index: int
    rounds: tuple[int, ...]
    ends_in_reply: bool
    num_draws: int


class HalfDuplexPolicy:
    """One turn-based session; a SessionPolicy. Its units are pieces of a user's turn, and replies."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, options: Mapping[str, Any]) -> None:
        """options: fields of TurnOptions. Of `sampling` only the seed counts: see ReplyOptions."""
        self.options = _read(TurnOptions, options)
        self.terminators = terminators(tokenizer)
        self.ids: list[int] = []
        self._unit = ReplyOptions()
        self._banned = torch.tensor(not_spoken(tokenizer))
        self._uniforms = Uniforms(sampling.seed)
        self._protected = 0
        self._rounds: list[int] = []
        self._ends_in_reply = self._is_finished = False
        self._index, self._start = -1, 0
        self._marks: list[_Mark] = []

    @property
    def max_feed(self) -> int:
        forced = self._unit.forced_ids
        return self._unit.longest if forced is None else len(forced)

    def opened(self, length: int) -> None:
        self._protected = length if self.options.protect_opening else 0
        self._rounds = [length - self._protected]
        self._mark()

    def begin(self, unit: Unit, at: int) -> None:
        self._unit = read_reply(unit.options)
        if not self._unit.reply and self._ends_in_reply:
            self._rounds.append(0)
        self._index, self._start = unit.index, at
        self.ids, self._is_finished = [], False

    def decide(self, logits: torch.Tensor) -> Decision:
        return self.decide_all([self], logits[None])[0]

    @staticmethod
    def decide_all(policies: Sequence[HalfDuplexPolicy], logits: torch.Tensor) -> list[Decision]:
        """One decision per policy and row of logits [M, V]."""
        drawn = _draw(policies, logits)
        return [policy._take(token) for policy, token in zip(policies, drawn, strict=True)]

    def end(self, length: int) -> Outcome:
        self._rounds[-1] += length - self._start
        self._ends_in_reply = self._unit.reply
        splice = self._cut()
        if splice is not None:
            self._marks.clear()  # what is dropped does not come back
        self._mark()
        info = {"finished": self._is_finished, "num_rounds": len(self._rounds), "length": length - self._start}
        speech = None
        if self._unit.reply:
            speech = "end" if self._is_finished else "stop"
        return Outcome(info, (splice,) if splice is not None else (), speech)

    def interrupt(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """The reply ends where it is; what closes it stands at the head of the next turn."""
        if options:
            raise RequestError(f"{next(iter(options))} is not an option of an interruption", param=next(iter(options)))
        return ()

    def rewind(self, index: int) -> None:
        while self._marks and self._marks[-1].index > index:
            self._marks.pop()
        if not self._marks:
            raise RequestError(f"the window has dropped what was before unit {index + 1}", param="index")
        mark = self._marks[-1]
        self._rounds, self._ends_in_reply = list(mark.rounds), mark.ends_in_reply
        self._uniforms.position = mark.num_draws

    @property
    def length(self) -> int:
        """Rows of the session."""
        return self._protected + sum(self._rounds)

    def _take(self, token: int) -> Decision:
        count, forced = len(self.ids), self._unit.forced_ids
        if forced is not None:
            self._is_finished = count == len(forced)
            token = token if self._is_finished else forced[count]
        else:
            self._is_finished = token in self.terminators
        if self._is_finished or (forced is None and count == self._unit.longest):
            # Neither the terminator nor the token behind the longest reply is kept.
            return Decision(end=True)
        self.ids.append(token)
        # Only the token behind a group tells whether the text goes on.
        return Decision((token,), collect=True, flush=count > 0 and count % GROUP == 0)

    def _penalised(self) -> list[int]:
        """The group that is being drawn, the first of which has one token more, and some before it."""
        count = len(self.ids)
        start = 0 if count <= GROUP else (count - 1) // GROUP * GROUP + 1
        return self.ids[max(start - PENALISED, 0) :]

    def _cut(self) -> Splice | None:
        """Whole rounds leave, oldest first, but never the one that is going on."""
        if self.length <= self.options.window_high_tokens:
            return None
        dropped = 0
        while len(self._rounds) > 1 and self.length > self.options.window_low_tokens:
            dropped += self._rounds.pop(0)
        return Splice(self._protected, self._protected + dropped) if dropped else None

    def _mark(self) -> None:
        self._marks.append(_Mark(self._index, tuple(self._rounds), self._ends_in_reply, self._uniforms.position))


class Groups(Generic[Row]):
    """Cuts a reply into what the speech LM is given at once: GROUP tokens with their rows, the rest with the last."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def push(self, rows: Sequence[Row]) -> list[list[Row]]:
        """More tokens -> the groups behind which the text is known to go on."""
        self._rows += rows
        out: list[list[Row]] = []
        while len(self._rows) > GROUP:
            out.append(self._rows[:GROUP])
            self._rows = self._rows[GROUP:]
        return out

    def finish(self) -> list[Row]:
        """The last group, which may be empty."""
        rows, self._rows = self._rows, []
        return rows


def terminators(tokenizer: Tokenizer) -> frozenset[int]:
    """What ends a reply. `</s>` is an ordinary entry of the vocabulary, where there is one."""
    found = {tokenizer.id("<|tts_eos|>"), tokenizer.id("<|im_end|>")}
    with suppress(CheckpointError):
        found.add(tokenizer.id("</s>"))
    return frozenset(found)


def not_spoken(tokenizer: Tokenizer) -> list[int]:
    """Ids that a reply never holds: marks that cannot be read out, <unk>, and what the checkpoint forbids."""
    marks = [tokenizer.encode(mark) for mark in _NOT_SPOKEN]
    single = {ids[0] for ids in marks if len(ids) == 1}
    return sorted({*single, tokenizer.id("<unk>"), *bad_token_ids(tokenizer)})


def _draw(policies: Sequence[HalfDuplexPolicy], logits: torch.Tensor) -> list[int]:
    units = [policy._unit for policy in policies]
    scores = logits.float().clone()
    scores[:, policies[0]._banned.to(scores.device)] = -math.inf
    seen = [policy._penalised() for policy in policies]
    divide_seen(scores, seen, [unit.repetition_penalty for unit in units], signed=True)
    damp(scores, sorted(policies[0].terminators), [unit.length_penalty for unit in units])
    ids, shares = candidates(
        scores,
        [unit.temperature for unit in units],
        [unit.top_k if unit.do_sample else 1 for unit in units],
        [unit.top_p for unit in units],
    )
    return pick(ids, shares, [policy._uniforms() for policy in policies]).tolist()


def read_reply(options: Mapping[str, Any]) -> ReplyOptions:
    """From plain values. Raises RequestError naming what is unknown or wrong."""
    given = dict(options)
    if given.get("forced_ids") is not None:
        given["forced_ids"] = tuple(given["forced_ids"])
    return _read(ReplyOptions, given)


Options = TypeVar("Options", TurnOptions, ReplyOptions)


def _read(kind: type[Options], values: Mapping[str, Any]) -> Options:
    known = {f.name for f in fields(kind)}
    for name in values:
        if name not in known:
            raise RequestError(f"{name} is not an option of half duplex; known: {', '.join(sorted(known))}", param=name)
    return kind(**values)
