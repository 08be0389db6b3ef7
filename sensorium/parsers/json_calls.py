"""Calls written as JSON objects, {"name": "f", "arguments": {...}}, read while they grow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from sensorium.parsers.writing import Buffered, CallDelta, Writer, split_at


class NestedValue:
    """Finds the end of a JSON object or array: counts brackets outside strings."""

    __slots__ = ("_depth", "_escaped", "_in_string")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def ends_with(self, char: str) -> bool:
        """Takes the next character; whether it closes the value."""
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif char == "\\":
                self._escaped = True
            elif char == '"':
                self._in_string = False
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
        return self._depth == 0

    def split(self, text: str) -> tuple[str, str, bool]:
        """What of the text belongs to the value, what stands behind it, and whether it ends there."""
        for number, char in enumerate(text, 1):
            if self.ends_with(char):
                return text[:number], text[number:], True
        return text, "", False


class _At(Enum):
    OPENING = auto()
    KEY = auto()
    IN_KEY = auto()
    COLON = auto()
    VALUE = auto()
    IN_STRING = auto()
    IN_NESTED = auto()
    IN_SCALAR = auto()
    AFTER = auto()
    DONE = auto()
    BROKEN = auto()


class CallObject:
    """One object that may be a call. It is one once its name is known and its arguments have begun."""

    def __init__(self, writer: Writer, keys: Sequence[str], *, bare: bool = False) -> None:
        """keys: what the arguments may be called. bare: whether an object without arguments is a call too."""
        self._writer = writer
        self._keys = keys
        self._bare = bare
        self._at = _At.OPENING
        self._seen: list[str] = []
        self._token: list[str] = []
        self._escaped = False
        self._nested = NestedValue()
        self._key = ""
        self._name: str | None = None
        self._arguments: list[str] = []
        self._has_arguments = self._in_arguments = False
        self.begun = False

    @property
    def done(self) -> bool:
        return self._at is _At.DONE

    @property
    def broken(self) -> bool:
        return self._at is _At.BROKEN

    def feed(self, text: str) -> str:
        """Reads on. Gives back what stands after the object, or from the first character that does not fit."""
        rest = ""
        for number, char in enumerate(text):
            self._take(char)
            if self.broken:
                rest = text[number:]
                break
            if not self.begun:
                self._seen.append(char)
            if self.done:
                rest = text[number + 1 :]
                break
        self._flush()
        return rest

    def unread(self) -> str:
        """The text of an object that is no call."""
        return "" if self.begun else "".join(self._seen)

    def _take(self, char: str) -> None:
        if self._at is _At.IN_NESTED:
            (self._arguments if self._in_arguments else self._token).append(char)
            if self._nested.ends_with(char):
                self._end_value()
        elif self._at in (_At.IN_KEY, _At.IN_STRING):
            self._take_in_string(char)
        elif self._at is _At.IN_SCALAR and not (char.isspace() or char in ",}"):
            self._token.append(char)
        else:
            if self._at is _At.IN_SCALAR:
                self._end_value()
            if self._at is _At.VALUE and not char.isspace():
                self._open_value(char)
            elif not char.isspace() and not self.broken:
                self._at = _PUNCTUATION.get((self._at, char), _At.BROKEN)
                self._token = [char]

    def _take_in_string(self, char: str) -> None:
        self._token.append(char)
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"' and self._at is _At.IN_KEY:
            self._key = str(self._decoded())
            self._at = _At.COLON if not self.broken else self._at
        elif char == '"':
            self._end_value()

    def _open_value(self, char: str) -> None:
        self._in_arguments = self._key in self._keys and not self._has_arguments
        self._has_arguments |= self._in_arguments
        self._token = [char]
        self._at = _At.IN_STRING if char == '"' else _At.IN_NESTED if char in "{[" else _At.IN_SCALAR
        if self._at is _At.IN_NESTED:
            self._nested = NestedValue()
            self._nested.ends_with(char)
            if self._in_arguments:
                self._arguments.append(char)

    def _end_value(self) -> None:
        was_nested = self._at is _At.IN_NESTED
        self._at = _At.AFTER
        if self._in_arguments and not was_nested:
            # Some models write the arguments as a string that holds JSON, or null for none.
            value = self._decoded()
            self._arguments.append(value if isinstance(value, str) else "{}" if value is None else json.dumps(value))
        elif self._key == "name" and self._name is None:
            name = self._decoded()
            self._name = name if isinstance(name, str) else None
            if not self._name:
                self._at = _At.BROKEN
        self._in_arguments = False

    def _decoded(self) -> Any:
        try:
            return json.loads("".join(self._token), strict=False)
        except ValueError:
            self._at = _At.BROKEN
            return None

    def _flush(self) -> None:
        if self.done and self._bare and self._name and not self._has_arguments:
            self._has_arguments = True
            self._arguments.append("{}")
        if self._name and self._has_arguments and not self.begun:
            self.begun = True
            self._writer.begin(self._name)
        if self.begun:
            self._writer.arguments("".join(self._arguments))
            self._arguments.clear()


_PUNCTUATION = {
    (_At.OPENING, "{"): _At.KEY,
    (_At.KEY, '"'): _At.IN_KEY,
    (_At.KEY, "}"): _At.DONE,
    (_At.COLON, ":"): _At.VALUE,
    (_At.AFTER, ","): _At.KEY,
    (_At.AFTER, "}"): _At.DONE,
}


class TaggedObjects(Buffered):
    """Each call an object between two tags, text around them: Hermes, Qwen3, InternLM."""

    def __init__(self, opener: str, closer: str, keys: Sequence[str] = ("arguments", "parameters")) -> None:
        self._opener, self._closer, self._keys = opener, closer, keys
        super().__init__()
        self._object: CallObject | None = None

    def finish(self) -> list[str | CallDelta]:
        call = self._object
        if call is None:
            self._writer.text(self._buffer)
        elif not call.begun:
            self._writer.text(self._opener + call.unread() + self._buffer)
        return self._writer.end()

    def _step(self) -> bool:
        """One thing read from the buffer; whether there may be another."""
        call = self._object
        if call is not None and not (call.done or call.broken):
            self._buffer = call.feed(self._buffer)
            return call.done or call.broken
        before, mark, self._buffer = split_at(self._buffer, [self._closer if call else self._opener])
        if call is None:
            self._writer.text(before)
            self._object = CallObject(self._writer, self._keys, bare=True) if mark else None
        elif call.begun:  # what stands between the object and its tag says nothing
            self._object = None if mark else call
        else:
            self._keep(call, before, mark)
        return mark is not None

    def _keep(self, call: CallObject, before: str, mark: str | None) -> None:
        """The tags hold no call: all of it is content."""
        if mark is None:
            self._buffer = before + self._buffer
        else:
            self._writer.text(self._opener + call.unread() + before + mark)
            self._object = None


class ObjectArray:
    """Calls as one array of objects and nothing else: what tool_choice "required" is made to write."""

    def __init__(self, keys: Sequence[str] = ("parameters", "arguments"), writer: Writer | None = None) -> None:
        self._keys = keys
        self._writer = writer or Writer()
        self._object: CallObject | None = None
        self._open = False
        self.done = False

    def feed(self, text: str) -> list[str | CallDelta]:
        rest = self.read(text)
        if rest:
            self._writer.text(rest)
        return self._writer.take()

    def finish(self) -> list[str | CallDelta]:
        self._writer.text(self.unread())
        return self._writer.end()

    def unread(self) -> str:
        """The text of an object that was cut off before it was a call."""
        return self._object.unread() if self._object and not self.done else ""

    def read(self, text: str) -> str:
        """Reads calls into the writer; what stands after the array, or does not belong there."""
        while text and not self.done:
            if self._object is not None:
                text = self._object.feed(text)
                if self._object.broken or (self._object.done and not self._object.begun):
                    self.done = True
                    return self._object.unread() + text
                if self._object.done:
                    self._object = None
                continue
            char = text[0]
            if char == "{" and self._open:
                self._object = CallObject(self._writer, self._keys, bare=True)
                continue
            if not (char.isspace() or (char == "[" and not self._open) or (char in ",]" and self._open)):
                self.done = True
                return text
            self._open = self._open or char == "["
            self.done = char == "]"
            text = text[1:]
        return text


class LeadingObjects(Buffered):
    """An answer that is nothing but objects with arguments, separated by semicolons: Llama 3. All else is content."""

    def __init__(self) -> None:
        super().__init__()
        self._object: CallObject | None = None
        self._plain = False

    def finish(self) -> list[str | CallDelta]:
        self._writer.text((self._object.unread() if self._object else "") + self._buffer)
        return self._writer.end()

    def _step(self) -> bool:
        if self._plain:
            self._writer.text(self._buffer)
            self._buffer = ""
            return False
        if self._object is not None:
            self._buffer = self._object.feed(self._buffer)
            if not (self._object.done or self._object.broken):
                return False
            self._plain = not (self._object.begun and self._object.done)
            self._writer.text(self._object.unread())
            self._object = None
            return True
        self._buffer = self._buffer.lstrip() if self._writer.calls else self._buffer
        stripped = self._buffer.lstrip()
        if not stripped:
            return False
        if stripped.startswith("{"):
            self._object = CallObject(self._writer, ("parameters", "arguments"))
        elif self._writer.calls and stripped[0] in ";,":
            self._buffer = stripped[1:]
        elif stripped.startswith(PYTHON_TAG):
            self._buffer = stripped.removeprefix(PYTHON_TAG)
        elif PYTHON_TAG.startswith(stripped):
            return False
        else:
            self._plain = True
        return True


PYTHON_TAG = "<|python_tag|>"
