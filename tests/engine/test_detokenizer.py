"""Text comes out whole: no half characters, no text beyond a stop string."""

from __future__ import annotations

import pytest

from sensorium.engine.detokenizer import Detokenizer
from sensorium.types import SamplingParams


class ByteTokenizer:
    """Token n is byte n; 256 is a control token."""

    eos_ids = (256,)
    special_ids = frozenset({256})
    vocab_size = 257

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        return list(text.encode())

    def decode(self, ids, *, skip_special: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode()

    def token_bytes(self, token_id: int) -> bytes:
        return b"<end>" if token_id == 256 else bytes([token_id])


def feed(text: str | bytes, **sampling) -> tuple[list[str], str | None]:
    detokenizer = Detokenizer(ByteTokenizer(), SamplingParams(**sampling))
    pieces = []
    for token in text.encode() if isinstance(text, str) else text:
        piece, stop = detokenizer.feed(token)
        pieces.append(piece)
        if stop is not None:
            return pieces, stop
    pieces.append(detokenizer.finish())
    return pieces, None


def test_a_character_appears_with_its_last_byte() -> None:
    pieces, _ = feed("a鲸b")
    assert pieces == ["a", "", "", "鲸", "b", ""]


def test_an_unfinished_character_becomes_a_replacement_mark() -> None:
    pieces, _ = feed("鲸".encode()[:2])
    assert "".join(pieces) == "�"


@pytest.mark.parametrize(("include", "expected"), [(False, "one "), (True, "one END")])
def test_text_ends_at_the_stop_string(include: bool, expected: str) -> None:
    pieces, stop = feed("one END two", stop=("END",), include_stop_str_in_output=include)
    assert ("".join(pieces), stop) == (expected, "END")


def test_a_false_start_of_a_stop_string_is_released() -> None:
    pieces, stop = feed("EENx", stop=("END",))
    assert ("".join(pieces), stop) == ("EENx", None)
    assert pieces[:3] == ["", "E", ""], "what may begin a stop string waits"


def test_the_earliest_of_several_stop_strings_wins() -> None:
    pieces, stop = feed("abcd", stop=("cd", "b"))
    assert ("".join(pieces), stop) == ("a", "b")


def test_control_tokens_are_skipped_unless_asked_for() -> None:
    hidden = Detokenizer(ByteTokenizer(), SamplingParams())
    shown = Detokenizer(ByteTokenizer(), SamplingParams(skip_special_tokens=False))
    assert hidden.feed(256) == ("", None)
    assert shown.feed(256) == ("<end>", None)
