"""Takes long runs of base64 out of a JSON body while it arrives, so that parsing what is left takes no time.

Decoding a body of 100 MB in one go would hold up every stream of the server for as long as that takes. What is cut out
is decided by its characters alone: base64 with nothing in between. Whether it is a picture or somebody's text is known
when the rest has been parsed, and `settle` gives every text back that is not the data of a medium.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import pybase64

from sensorium.errors import TooLargeError
from sensorium.inline import LongText, Runs

T = TypeVar("T")
MAX_NODES = 200_000
"""Texts with more values, roughly, are parsed whole: `settle` visits every value."""
BLOCK = 64 << 10
"""Runs are found and decoded in blocks of so many characters: microseconds each."""
_KEPT = 8
"""Characters of a run that stay in the text: an escape such as \\u0041 may end in them."""
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

_MEDIA = frozenset(
    {"image_url", "video_url", "audio_url", "input_image", "image", "video", "audio", "input_audio", "source"}
    | {"image_embeds", "video_embeds", "audio_embeds"}
)
_PLACES: Mapping[str, Mapping[str, str]] = {
    "request": {"messages": "message", "input": "message", "file_url": "media"},
    "message": {"content": "part", "output": "part"},
    "part": {"content": "part"} | dict.fromkeys(_MEDIA, "media"),
}
"""What an object is, by where it stands -> its fields that lead to media -> what stands there. All else is text."""


_COSTS = {b",": 40, b"[": 80, b"{": 200, b'"': 30}
"""Characters of JSON -> bytes of memory, roughly, that the value costs which they begin or end."""


def decoded_bytes(text: bytes | bytearray) -> int:
    """Roughly what the values of a JSON text take as Python objects. More than it where texts hold such characters."""
    return sum(cost * text.count(mark) for mark, cost in _COSTS.items())


@dataclass(frozen=True, slots=True)
class Body:
    """A JSON body. text: with the marks of `runs` in it. size: bytes that arrived."""

    text: bytes
    runs: Runs
    size: int

    def settle(self, request: T) -> T:
        """The decoded request with every text whole, except media, which become LongText. RecursionError if it is
        nested deeply."""
        return _settled(request, self.runs, "request") if len(self.runs) else request


class Lifter:
    """Takes a body as it arrives. Memory: the text, the decoded runs, and one block."""

    def __init__(self, most_decoded: int | None = None) -> None:
        """most_decoded: see decoded_bytes; TooLargeError for a text with more, as soon as it is seen."""
        self._most_decoded = most_decoded
        self._decoded_bytes = 0
        self._runs = Runs(secrets.token_hex(16))
        self._text, self._block = bytearray(), bytearray()
        self._size = 0
        self._in_run = self._marked = False

    def feed(self, piece: bytes) -> None:
        self._size += len(piece)
        view = memoryview(piece)
        for start in range(0, len(view), BLOCK):
            self._block += view[start : start + BLOCK]
            while len(self._block) >= BLOCK:
                self._take_block()

    def finish(self) -> Body:
        self._count(self._block)
        text, runs, self._block = bytes(self._text + self._block), self._runs, bytearray()
        if len(runs) and sum(map(text.count, (b",", b"[", b"{"))) > MAX_NODES:
            whole = runs.whole(text.decode("utf-8", "surrogateescape"))
            text, runs = whole.encode("utf-8", "surrogateescape"), Runs("")
        return Body(text, runs, self._size)

    def _count(self, text: bytes | bytearray) -> None:
        self._decoded_bytes += decoded_bytes(text)
        if self._most_decoded is not None and self._decoded_bytes > self._most_decoded:
            raise TooLargeError(
                f"the request body's JSON has so many values that they take more than {self._most_decoded} bytes of "
                "memory (max_json_bytes)"
            )

    def _take_block(self) -> None:
        block = bytes(self._block[:BLOCK])
        decoded = _decoded(block)
        if decoded is None:
            self._in_run = False
            self._count(block)
            self._text += block
            del self._block[:BLOCK]
        elif self._in_run:
            if not self._marked:
                self._text += self._runs.open().encode()
                self._marked = True
            self._runs.add(decoded)
            del self._block[:BLOCK]
        else:
            before = self._text[-BLOCK:]
            begun = len(before) - len(before.rstrip(_ALPHABET))
            kept = -begun % 4 if begun >= _KEPT else _KEPT - begun
            self._text += block[:kept]
            del self._block[:kept]
            self._in_run, self._marked = True, False


def _decoded(block: bytes) -> bytes | None:
    """None unless all characters are of the alphabet."""
    if block.endswith(b"="):
        return None
    try:
        return pybase64.b64decode(block, validate=True)
    except ValueError:
        return None


def _settled(value: Any, runs: Runs, place: str) -> Any:
    if isinstance(value, str):
        if runs.nonce not in value:
            return value
        return LongText.of(value, runs) if place == "media" else runs.whole(value)
    if isinstance(value, list):
        return [_settled(item, runs, place) for item in value]  # pyright: ignore - JSON
    if isinstance(value, dict):
        fields: dict[str, Any] = value  # pyright: ignore - JSON
        return {
            _settled(name, runs, "text"): _settled(inner, runs, _below(place, name)) for name, inner in fields.items()
        }
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            msgspec.structs.force_setattr(value, name, _settled(getattr(value, name), runs, _below(place, name)))
    return value


def _below(place: str, name: Any) -> str:
    return "media" if place == "media" else _PLACES.get(place, {}).get(name, "text")
