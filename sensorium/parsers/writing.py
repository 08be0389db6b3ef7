"""What tool parsers have in common: the deltas they give, and text held back until it is certain what it is.

Every decision of a parser depends on characters alone, never on where a piece of text ends; so the deltas of any split
of a text, joined, are those of the whole text.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

FUNCTION_NAME = re.compile(r"[\w.:-]{1,128}")


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of call number `index`: its name comes first, alone; then its arguments, JSON text, in pieces."""

    index: int
    name: str | None = None
    arguments: str = ""


class ToolParser(Protocol):
    """Reads one answer. Strings in the results are content."""

    def feed(self, text: str) -> list[str | CallDelta]:
        """What `text`, the next piece of the answer, makes certain."""
        ...

    def finish(self) -> list[str | CallDelta]:
        """What was held back. A call that was cut off stays as far as it came."""
        ...


def split_at(text: str, marks: Sequence[str]) -> tuple[str, str | None, str]:
    """Text before the first mark, the mark, and the rest. Without a mark, the rest is an end that may begin one.

    No mark may be part of another.
    """
    found = min(((at, mark) for mark in marks if (at := text.find(mark)) >= 0), default=None)
    if found is not None:
        at, mark = found
        return text[:at], mark, text[at + len(mark) :]
    longest = max(map(len, marks))
    for start in range(max(len(text) - longest + 1, 0), len(text)):
        if any(mark.startswith(text[start:]) for mark in marks):
            return text[:start], None, text[start:]
    return text, None, ""


class Writer:
    """Collects deltas. Blanks next to a call are layout: they are content only between two words of it."""

    def __init__(self) -> None:
        self._deltas: list[str | CallDelta] = []
        self._blanks = ""
        self.calls = 0

    def text(self, text: str) -> None:
        kept = text.rstrip()
        if kept:
            self._add(self._blanks + kept)
            self._blanks = text[len(kept) :]
        else:
            self._blanks += text

    def begin(self, name: str) -> None:
        self._blanks = ""
        self._deltas.append(CallDelta(self.calls, name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """More of the arguments of the call begun last."""
        if not text:
            return
        index = self.calls - 1
        last = self._deltas[-1] if self._deltas else None
        if isinstance(last, CallDelta) and last.index == index and last.name is None:
            self._deltas[-1] = CallDelta(index, arguments=last.arguments + text)
        else:
            self._deltas.append(CallDelta(index, arguments=text))

    def take(self) -> list[str | CallDelta]:
        deltas, self._deltas = self._deltas, []
        return deltas

    def end(self) -> list[str | CallDelta]:
        """The last deltas: without any call, blanks at the end are part of the text."""
        if self._blanks and not self.calls:
            self._add(self._blanks)
        self._blanks = ""
        return self.take()

    def _add(self, text: str) -> None:
        if self._deltas and isinstance(self._deltas[-1], str):
            self._deltas[-1] += text
        else:
            self._deltas.append(text)


class Buffered(ABC):
    """A parser that takes one thing after the other from the front of a buffer."""

    def __init__(self) -> None:
        self._writer = Writer()
        self._buffer = ""

    def feed(self, text: str) -> list[str | CallDelta]:
        self._buffer += text
        while self._buffer and self._step():
            pass
        return self._writer.take()

    @abstractmethod
    def _step(self) -> bool:
        """One thing read from the buffer, which is not empty; whether there may be another."""
