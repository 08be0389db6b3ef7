"""Rules about tokens that one sequence's answer must keep, as plain bookkeeping over ids. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sensorium.models.base import Tokenizer

THINK, END_THINK = "<think>", "</think>"


def bad_word_ids(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Token sequences that spell a word, at the start of a text and after a blank; without repetitions."""
    spelled = (tuple(tokenizer.encode(prefix + word.lstrip())) for word in words for prefix in ("", " "))
    return tuple(dict.fromkeys(ids for ids in spelled if ids))


def thinking_marks(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Ids that begin and end thinking, where the vocabulary has a token of its own for the end."""
    end = tokenizer.encode(END_THINK, allow_special=True)
    return (tuple(tokenizer.encode(THINK, allow_special=True)), tuple(end)) if len(end) == 1 else None


@dataclass(slots=True)
class BadWords:
    """Bars the last token of each sequence once the answer ends with all before it."""

    sequences: tuple[tuple[int, ...], ...]
    _tail: list[int] = field(default_factory=list[int])

    def accept(self, token: int) -> None:
        self._tail.append(token)
        longest = max(map(len, self.sequences)) - 1
        del self._tail[: max(len(self._tail) - longest, 0)]

    def barred(self) -> list[int]:
        tail = tuple(self._tail)
        return [ids[-1] for ids in self.sequences if tail[len(tail) - len(ids) + 1 :] == ids[:-1]]


@dataclass(slots=True)
class ThinkingBudget:
    """Forces the end of thinking after `budget` tokens of it, in all passages together."""

    budget: int
    start: tuple[int, ...]
    end: tuple[int, ...]
    is_open: bool
    _spent: int = 0
    _matched: int = 0
    """Tokens of the mark being waited for that have come in a row."""

    @classmethod
    def after_prompt(
        cls, budget: int, marks: tuple[tuple[int, ...], tuple[int, ...]], prompt: Sequence[int]
    ) -> ThinkingBudget:
        start, end = marks
        return cls(budget, start, end, _last(prompt, start) > _last(prompt, end))

    def forced(self) -> int | None:
        """The only token that may come next, if thinking must end now."""
        return self.end[self._matched] if self.is_open and self._spent >= self.budget else None

    def accept(self, token: int) -> None:
        mark = self.end if self.is_open else self.start
        if token != mark[self._matched]:
            self._spent += self.is_open * (self._matched + 1)
            self._matched = int(token == mark[0] and len(mark) > 1)
        elif self._matched + 1 == len(mark):
            self.is_open, self._matched = not self.is_open, 0
        else:
            self._matched += 1


def _last(ids: Sequence[int], mark: tuple[int, ...]) -> int:
    """Where a mark begins for the last time; -1 if nowhere."""
    for at in range(len(ids) - len(mark), -1, -1):
        if ids[at] == mark[0] and tuple(ids[at : at + len(mark)]) == mark:
            return at
    return -1
