"""Reasoning parsers: where the reasoning ends, and that a stream says the same as the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.errors import RequestError
from sensorium.parsers.reasoning import REASONING_PARSERS, reasoning_parser


def read(name: str, start: str, pieces: list[str]) -> tuple[str, str]:
    parser = reasoning_parser(name, start)  # type: ignore[arg-type]
    found = [parser.feed(piece) for piece in pieces] + [parser.finish()]
    return "".join(reasoning for reasoning, _ in found), "".join(content for _, content in found)


@pytest.mark.parametrize(
    ("name", "start", "text", "reasoning", "content"),
    [
        ("qwen3", "unsaid", "<think>\nHm.\n\nYes.\n</think>\n\nHello ", "Hm.\n\nYes.", "Hello "),
        ("qwen3", "unsaid", "\n<think>\n\n</think>\n\nHello", "", "Hello"),
        ("qwen3", "unsaid", "Hello <think>x</think>", "", "Hello <think>x</think>"),
        ("qwen3", "unsaid", "<think>cut off", "cut off", ""),
        ("qwen3", "unsaid", "<thin", "", "<thin"),
        ("qwen3", "open", "Hm.</think>Hello", "Hm.", "Hello"),
        ("qwen3", "open", "still </thin", "still </thin", ""),
        ("qwen3", "closed", " Hello</think>", "", " Hello</think>"),
        ("deepseek_r1", "unsaid", "Hm.\n</think>\nHello", "Hm.", "Hello"),
        ("deepseek_r1", "unsaid", "<think>Hm.</think>Hello", "Hm.", "Hello"),
        ("deepseek_r1", "unsaid", "no end", "no end", ""),
        ("mistral", "unsaid", "[THINK]Hm.[/THINK]Hello", "Hm.", "Hello"),
        ("granite", "unsaid", "Here is my thought process: Hm. Here is my response: Hello", "Hm.", "Hello"),
    ],
)
def test_where_reasoning_ends(name: str, start: str, text: str, reasoning: str, content: str):
    assert read(name, start, [text]) == (reasoning, content)
    assert read(name, start, list(text)) == (reasoning, content)


BITS = st.sampled_from(["<think>", "</think>", "[THINK]", "[/THINK]", "<", "</", "think>", " ", "\n", "a", "Here is "])


@pytest.mark.parametrize("name", REASONING_PARSERS)
@given(bits=st.lists(BITS, max_size=16), start=st.sampled_from(["open", "closed", "unsaid"]), data=st.data())
def test_any_split_of_any_text_says_the_same(name: str, bits: list[str], start: str, data: st.DataObject):
    text = "".join(bits)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(name, start, pieces) == read(name, start, [text])


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(RequestError, match="deepseek_r1"):
        reasoning_parser("deepseek")
