"""Answers in channels, as gpt-oss writes them: what it thinks, calls of functions, and what it says, each a message.

<|start|>assistant<|channel|>analysis<|message|>TEXT<|end|>; the first <|start|>assistant stands in the prompt already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from sensorium.parsers.writing import FUNCTION_NAME, CallDelta, Writer, split_at

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
SPELLINGS = (START, CHANNEL, MESSAGE, CONSTRAIN, *ENDS)
FINAL = f"{CHANNEL}final{MESSAGE}"
_RECIPIENT = re.compile(r"\bto=functions\.([\w.:-]+)")
_ANALYSIS = re.compile(re.escape(CHANNEL) + r"\s*analysis\b")

Kind = Literal["thought", "content", "call", "end"]


class Channels:
    """Takes an answer apart: pieces of (kind, text), a call's name first, its end last. Other text is content."""

    def __init__(self) -> None:
        self._buffer = ""
        self._kind: Kind | None = None
        """Of the message that is open; None in a header."""
        self._spoken = False
        self.header = ""
        """Of the message that was opened last."""

    @property
    def thinks(self) -> bool:
        """Whether what comes next is no content, as far as one can tell."""
        return self._kind == "thought" or (self._kind is None and not self._spoken)

    def feed(self, text: str) -> Iterator[tuple[Kind, str]]:
        self._buffer += text
        while self._buffer:
            if self._kind is None:
                piece = self._open()
                if piece is None:
                    return
                if piece[1]:
                    yield piece
                continue
            before, mark, self._buffer = split_at(self._buffer, (*ENDS, START))
            if before:
                yield self._kind, before
            if mark is None:
                return
            if self._kind == "call":
                yield "end", mark
            self._kind = None
            if mark == START:  # a message that was not ended
                self._buffer = START + self._buffer

    def finish(self) -> tuple[Kind, str]:
        """What was held back."""
        rest, self._buffer = self._buffer, ""
        return ("content" if self._kind is None else self._kind), rest

    def _open(self) -> tuple[Kind, str] | None:
        """The header of a message, once it is whole: a call's name, or nothing. None while it is not."""
        stripped = self._buffer.lstrip()
        begins = (START, CHANNEL, "to=")
        if not any(stripped.startswith(begin) or begin.startswith(stripped) for begin in begins):
            self._kind, self._spoken = "content", True
            return "content", ""
        header, mark, rest = split_at(self._buffer, (MESSAGE,))
        if mark is None:
            return None
        self._buffer, self.header = rest, header
        called = _RECIPIENT.search(header)
        if called is not None and FUNCTION_NAME.fullmatch(called[1]):
            self._kind, self._spoken = "call", True
            return "call", called[1]
        self._kind = "thought" if _ANALYSIS.search(header) else "content"
        self._spoken = self._spoken or self._kind == "content"
        return self._kind, ""


class Harmony:
    """Calls and content; what is thought is left out."""

    def __init__(self) -> None:
        self._channels = Channels()
        self._writer = Writer()
        self._called = False

    def feed(self, text: str) -> list[str | CallDelta]:
        for kind, piece in self._channels.feed(text):
            self._write(kind, piece)
        return self._writer.take()

    def finish(self) -> list[str | CallDelta]:
        self._write(*self._channels.finish())
        return self._writer.end()

    def _write(self, kind: Kind, text: str) -> None:
        if kind == "content":
            self._writer.text(text)
        elif kind == "end":
            self._called = False
        elif kind == "call" and not self._called:
            self._writer.begin(text)
            self._called = True
        elif kind == "call":
            self._writer.arguments(text)


class HarmonyReasoning:
    """(what is thought, all else) of an answer, content without its headers and calls as they stand for Harmony."""

    def __init__(self) -> None:
        self._channels = Channels()
        self._called = False

    @property
    def is_reasoning(self) -> bool:
        return self._channels.thinks

    def feed(self, text: str) -> tuple[str, str]:
        """See ReasoningParser."""
        return self._sorted(self._channels.feed(text))

    def finish(self) -> tuple[str, str]:
        return self._sorted([self._channels.finish()])

    def _sorted(self, pieces: Iterable[tuple[Kind, str]]) -> tuple[str, str]:
        thoughts, content = "", ""
        for kind, text in pieces:
            if kind == "thought":
                thoughts += text
            elif kind == "call" and not self._called:
                self._called = True
                content += self._channels.header + MESSAGE
            else:
                self._called = self._called and kind != "end"
                content += text
        return thoughts, content
