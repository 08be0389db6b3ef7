"""Calls between marks: an array behind one, name and arguments on both sides of one, the braces of Gemma 4."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sensorium.parsers.json_calls import NestedValue, ObjectArray
from sensorium.parsers.writing import FUNCTION_NAME, Buffered, CallDelta, split_at

_KEYS = ("arguments", "parameters")
_ARRAY = re.compile(r"\s*\[\s*\{")
_MAYBE_ARRAY = re.compile(r"\s*(?:\[\s*)?")


class MarkedArray(Buffered):
    """A mark and behind it an array of objects: Granite 3, Phi 4 mini. leading: it may stand alone, too."""

    def __init__(self, *marks: str, leading: bool = False) -> None:
        self._marks = marks
        super().__init__()
        self._state = "start" if leading else "text"
        self._mark = ""
        self._array = ObjectArray(_KEYS, self._writer)
        self._calls_before = 0

    def finish(self) -> list[str | CallDelta]:
        if self._state == "array":
            self._keep_opening()
            self._writer.text(self._array.unread())
        elif self._state == "opening":
            self._writer.text(self._mark)
        self._writer.text(self._buffer)
        return self._writer.end()

    def _step(self) -> bool:
        if self._state == "start":
            stripped = self._buffer.lstrip()
            if stripped:
                self._state = "opening" if stripped[0] == "[" else "text"
            return bool(stripped)
        if self._state == "text":
            before, mark, self._buffer = split_at(self._buffer, self._marks)
            self._writer.text(before)
            if mark is not None:
                self._state, self._mark = "opening", mark
            return mark is not None
        return self._open() if self._state == "opening" else self._read()

    def _open(self) -> bool:
        found = _ARRAY.match(self._buffer)
        maybe = _MAYBE_ARRAY.match(self._buffer)
        if found is None and maybe is not None and maybe.end() == len(self._buffer):
            return False
        if found is None:
            self._writer.text(self._mark)
            self._state = "text"
            return True
        self._mark += found[0][:-1]
        self._calls_before, self._state = self._writer.calls, "array"
        self._array = ObjectArray(_KEYS, self._writer)
        self._array.read("[")
        self._buffer = self._buffer[found.end() - 1 :]
        return True

    def _read(self) -> bool:
        self._buffer = self._array.read(self._buffer)
        if not self._array.done:
            return False
        self._keep_opening()
        self._state = "text"
        return True

    def _keep_opening(self) -> None:
        """What was taken for the beginning of calls and is none, is text."""
        if self._writer.calls == self._calls_before:
            self._writer.text(self._mark)


@dataclass(frozen=True, slots=True)
class Marks:
    """opener HEAD separator LEAD {arguments} closer; sections are marks around several calls."""

    opener: str
    separator: str
    closer: str
    sections: tuple[str, str]
    name: Callable[[str, str], str]
    """The function's name from HEAD and LEAD, the text between the separator and the arguments."""

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.opener, self.separator, self.closer, *self.sections)


def _kimi_name(head: str, lead: str) -> str:
    """functions.NAME:NUMBER"""
    return re.sub(r":\d+$", "", head.strip()).removeprefix("functions.")


_DEEPSEEK = (
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)
DEEPSEEK_V3 = Marks(*_DEEPSEEK, lambda head, lead: lead.partition("\n")[0].strip())
DEEPSEEK_V31 = Marks(*_DEEPSEEK, lambda head, lead: head.strip())
KIMI = Marks(
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    _kimi_name,
)


class SeparatedCalls(Buffered):
    """Each call a name and a JSON object with a mark between them: DeepSeek V3, Kimi K2."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        super().__init__()
        self._head = ""
        self._state = "text"
        self._value = NestedValue()

    def finish(self) -> list[str | CallDelta]:
        if self._state == "text":
            self._writer.text(self._buffer)
        elif self._state == "head":
            self._writer.text(self._marks.opener + self._buffer)
        elif self._state == "lead":
            self._writer.text(self._marks.opener + self._head + self._marks.separator + self._buffer)
        return self._writer.end()

    def _step(self) -> bool:
        marks = self._marks
        if self._state == "text":
            before, mark, self._buffer = split_at(self._buffer, (marks.opener, *marks.sections))
            self._writer.text(before)
            self._state = "head" if mark == marks.opener else "text"
            return mark is not None
        if self._state == "head":
            return self._read_head()
        if self._state == "lead":
            return self._read_lead()
        if self._state == "arguments":
            return self._read_arguments()
        _, mark, self._buffer = split_at(self._buffer, (marks.closer, marks.sections[1]))
        self._state = "text" if mark else "tail"
        return mark is not None

    def _read_head(self) -> bool:
        marks = self._marks
        before, mark, rest = split_at(self._buffer, (marks.separator, marks.closer))
        if mark is None:
            return False
        self._buffer = rest
        if mark == marks.separator:
            self._head, self._state = before, "lead"
        else:
            self._writer.text(marks.opener + before + mark)
            self._state = "text"
        return True

    def _read_lead(self) -> bool:
        """Up to the brace that opens the arguments, or the end of a call without any."""
        marks = self._marks
        before, mark, rest = split_at(self._buffer, ("{", marks.closer))
        if mark is None:
            return False
        name = marks.name(self._head, before)
        if not FUNCTION_NAME.fullmatch(name):
            self._writer.text(marks.opener + self._head + marks.separator + before + mark)
            self._buffer, self._state = rest, "text"
            return True
        self._writer.begin(name)
        if mark == "{":
            self._value = NestedValue()
            self._buffer, self._state = mark + rest, "arguments"
        else:
            self._writer.arguments("{}")
            self._buffer, self._state = rest, "text"
        return True

    def _read_arguments(self) -> bool:
        value, self._buffer, ended = self._value.split(self._buffer)
        self._writer.arguments(value)
        if ended:
            self._state = "tail"
        return ended


_OPENER, _CLOSER, _QUOTE = "<|tool_call>", "<tool_call|>", '<|"|>'
_CALL = re.compile(r"\s*call:\s*([\w.:-]+?)\s*(?=\{)")
_SCALAR = re.compile(r"[^,\[\]{}]+")
MAX_DEPTH = 64


class BracedCalls(Buffered):
    """call:NAME{key:value,...} between two marks, strings between <|"|>: Gemma 4."""

    def __init__(self) -> None:
        super().__init__()
        self._inside = False

    def finish(self) -> list[str | CallDelta]:
        self._writer.text((_OPENER if self._inside else "") + self._buffer)
        return self._writer.end()

    def _step(self) -> bool:
        if not self._inside:
            before, mark, self._buffer = split_at(self._buffer, (_OPENER,))
            self._writer.text(before)
            self._inside = mark is not None
            return self._inside
        end = _outside_strings(self._buffer)
        if end < 0:
            return False
        body, self._buffer, self._inside = self._buffer[:end], self._buffer[end + len(_CLOSER) :], False
        call = _read_braced(body)
        if call is None:
            self._writer.text(_OPENER + body + _CLOSER)
        else:
            self._writer.begin(call[0])
            self._writer.arguments(call[1])
        return True


def _outside_strings(text: str) -> int:
    """Where the closing mark stands outside strings; -1 if it does not."""
    at = 0
    for number, part in enumerate(text.split(_QUOTE)):
        found = -1 if number % 2 else part.find(_CLOSER)
        if found >= 0:
            return at + found
        at += len(part) + len(_QUOTE)
    return -1


def _read_braced(body: str) -> tuple[str, str] | None:
    """Name and arguments as JSON; None if it is no call."""
    found = _CALL.match(body)
    if found is None:
        return None
    try:
        value, end = _value(body, found.end(), 0)
        if body[end:].strip() or not isinstance(value, dict):
            return None
        return found[1], json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, IndexError):
        return None


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    """The value at a place, and where it ends. Raises ValueError, IndexError."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    at = _blank(text, at)
    if text.startswith(_QUOTE, at):
        end = text.index(_QUOTE, at + len(_QUOTE))
        return text[at + len(_QUOTE) : end], end + len(_QUOTE)
    if text[at] == '"':
        value, end = json.JSONDecoder(strict=False).raw_decode(text, at)
        return value, end
    if text[at] not in "{[":
        scalar = _SCALAR.match(text, at)
        if scalar is None:
            raise ValueError("no value")
        return _scalar(scalar[0].strip()), scalar.end()
    closer, items, pairs = {"{": "}", "[": "]"}[text[at]], list[Any](), dict[str, Any]()
    at = _blank(text, at + 1)
    while text[at] != closer:
        if closer == "}":
            key, at = _key(text, at)
            pairs[key], at = _value(text, at, depth + 1)
        else:
            value, at = _value(text, at, depth + 1)
            items.append(value)
        at = _blank(text, at)
        if text[at] == ",":
            at = _blank(text, at + 1)
        elif text[at] != closer:
            raise ValueError("no comma")
    return (pairs if closer == "}" else items), at + 1


def _key(text: str, at: int) -> tuple[str, int]:
    """A bare or a quoted key, and where its value begins."""
    if text.startswith((_QUOTE, '"'), at):
        key, at = _value(text, at, 0)
        at = _blank(text, at)
    else:
        end = text.index(":", at)
        key, at = text[at:end].strip(), end
    if text[at] != ":" or not key:
        raise ValueError("no key")
    return key, at + 1


def _scalar(text: str) -> Any:
    if text in ("None", "null"):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and value - value != 0 else value  # neither NaN nor infinite


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
