"""One state slot of the speech LM, as the host sees it: what its turn has said, and how far its call is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from sensorium.engine.speech_rules import PENALTY_WINDOW, Rule, SpeechSampling, SpeechWork, Spoken
from sensorium.engine.speech_sampler import NONE
from sensorium.errors import EngineError

Ended = Literal["eos", "length", "error"]


@dataclass(slots=True)
class Call:
    """A work under way. min_new and max_new are what applies to it."""

    work: SpeechWork
    min_new: int
    max_new: int
    uniforms: list[float]
    """One random number for each code it may pick."""
    rows: torch.Tensor | None = None
    """Condition [n, E], once computed; its last row, the mark of the sound's beginning, is fed by the first round."""
    steps: int = 0
    """Codes picked so far."""
    codes: list[int] = field(default_factory=list[int])
    told: int = 0
    """Of `codes`: how many the caller has."""
    ended: Ended | None = None


@dataclass(slots=True)
class Chunk:
    """A call of this turn that is over."""

    rows: torch.Tensor
    """Its condition [n, E]."""
    codes: list[int]

    @property
    def length(self) -> int:
        return len(self.rows) + len(self.codes)


@dataclass(slots=True)
class Slot:
    index: int
    rule: Rule
    sampling: SpeechSampling
    generator: torch.Generator
    length: int = 0
    """Rows in the KV cache."""
    position: int = 0
    """Of the next row."""
    oldest: int = 0
    """Which of a full window's rows goes next."""
    recent: list[int] = field(default_factory=list[int])
    """The latest codes of the turn, PENALTY_WINDOW at most."""
    first: Chunk | None = None
    previous: Chunk | None = None
    call: Call | None = None

    def begin(self, work: SpeechWork) -> None:
        """Take a work. Its random numbers are drawn here, so that they depend on nothing that runs beside it."""
        rule = self.rule
        min_new = work.min_new
        if min_new is None:
            # A duplex turn's first and last unit may be shorter than a second.
            short = rule.text_eos == "never" and (work.last or self.length == 0)
            min_new = 0 if short else rule.min_new
        max_new = rule.max_new if work.max_new is None else work.max_new
        uniforms = torch.rand(max_new, generator=self.generator).tolist()
        self.call = Call(work, min_new, max_new, uniforms)

    @property
    def penalised(self) -> list[int]:
        """The codes that the penalty sees, PENALTY_WINDOW at most."""
        return call_of(self).codes[-PENALTY_WINDOW:] if self.rule.scope == "call" else self.recent

    @property
    def is_limited(self) -> bool:
        """Whether filters apply to the next pick: to all but the first code of the rule's scope."""
        return bool(self.penalised)

    def feed(self, count: int) -> None:
        """Account for rows that went into the cache."""
        self.length += count
        self.position += count

    def take(self, code: int, eos: int) -> None:
        """Account for a pick of the call; ends it where its rule says so."""
        call = call_of(self)
        call.steps += 1
        full = call.steps == call.max_new
        if code == NONE:
            call.ended = "error"
        elif code == eos:
            call.ended = "eos"
        elif full and not self.rule.keeps_last:
            call.ended = "length"
        else:
            call.codes.append(code)
            self.recent = [*self.recent[1 - PENALTY_WINDOW :], code]
            call.ended = "length" if full else None
        if call.ended is not None:
            self._end(call)

    def _end(self, call: Call) -> None:
        if call.ended == "error" or call.work.last or self.rule.one_call:
            self.start_anew()
            return
        assert call.rows is not None
        if call.ended == "length" and self.rule.keeps_last:
            # The last code was never fed, yet the reference counts its position.
            self.position += 1
        self.previous = Chunk(call.rows, call.codes)
        self.first = self.first or self.previous

    def start_anew(self) -> None:
        """Forget the turn."""
        self.length = self.position = self.oldest = 0
        self.recent = []
        self.first = self.previous = None

    def tell(self) -> Spoken | None:
        """What is new since the last time; a call that has ended is told once."""
        call = self.call
        if call is None or (call.told == len(call.codes) and call.ended is None):
            return None
        codes = call.codes[call.told :]
        call.told = len(call.codes)
        if call.ended is not None:
            self.call = None
        error = EngineError("the speech model produced a value that is not a number") if call.ended == "error" else None
        return Spoken(self.index, codes, call.ended, error)


def call_of(slot: Slot) -> Call:
    """The call of a slot that has one."""
    assert slot.call is not None
    return slot.call
