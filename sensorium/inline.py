"""Long base64 texts of a request, decoded piece by piece as they arrive: no step holds or copies them whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pybase64


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """Bytes that lie in several places. They cross to a media worker as one bytes object."""

    parts: tuple[bytes, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __bytes__(self) -> bytes:
        return b"".join(self.parts)


class Runs:
    """What was cut out of one request: runs of base64 characters, decoded. In their places the text has marks.

    A mark holds `nonce`, which nobody outside can know, and no quote, backslash or comma, so it stands in JSON and in
    data URLs like the characters that it replaces; no base64 decoder takes it. Each run begins and ends between groups
    of four characters of the base64 text that it is a part of.
    """

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self._decoded: list[list[bytes]] = []

    def __len__(self) -> int:
        return len(self._decoded)

    def open(self) -> str:
        """Begin another run, which `add` appends to; returns its mark."""
        self._decoded.append([])
        return f"<{self.nonce}.{len(self._decoded) - 1}>"

    def add(self, decoded: bytes) -> None:
        self._decoded[-1].append(decoded)

    def split(self, text: str) -> Iterator[str | list[bytes]]:
        """The text's own characters and its runs, in order."""
        first, *rest = text.split(f"<{self.nonce}.")
        yield first
        for part in rest:
            number, _, own = part.partition(">")
            yield self._decoded[int(number)]
            yield own

    def whole(self, text: str) -> str:
        """The text as it was sent."""
        return "".join(
            part if isinstance(part, str) else "".join(map(pybase64.b64encode_as_string, part))
            for part in self.split(text)
        )


class LongText(str):
    """Base64, perhaps behind the head of a data URL, with marks of `runs` in place of most of it.

    As a str it can be cut in front of the first mark and split at commas; `part_of` gives what that makes the runs.
    """

    __slots__ = ("runs",)
    runs: Runs

    @classmethod
    def of(cls, text: str, runs: Runs) -> LongText:
        made = cls(text)
        made.runs = runs
        return made

    @property
    def size(self) -> int:
        """Characters of the text as it was sent."""
        return sum(
            len(part) if isinstance(part, str) else sum(map(len, part)) // 3 * 4 for part in self.runs.split(self)
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LongText):
            return False
        return list(self.runs.split(self)) == list(other.runs.split(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.size)


def text_size(text: str) -> int:
    """Characters of the text as it was sent."""
    return text.size if isinstance(text, LongText) else len(text)


def part_of(text: str, part: str) -> str:
    """`part`, which was made of `text` by cutting or adding, with the runs of that."""
    return LongText.of(part, text.runs) if isinstance(text, LongText) else part


def behind(prefix: str, text: str) -> str:
    """prefix + text."""
    return part_of(text, prefix + text)


def decode_base64(text: str) -> bytes | Pieces:
    """Strictly: the standard alphabet, padded, nothing else. ValueError for all other texts."""
    if not isinstance(text, LongText):
        return pybase64.b64decode(text, validate=True)
    found: list[bytes] = []
    for part in text.runs.split(text):
        found += [pybase64.b64decode(part, validate=True)] if isinstance(part, str) else part
    return Pieces(tuple(found))
