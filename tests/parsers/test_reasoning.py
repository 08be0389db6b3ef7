"""Reasoning parsers: where the reasoning ends, and that a stream says the same as the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.errors import RequestError
from sensorium.parsers.reasoning import REASONING_PARSERS, reasoning_parser
from sensorium.parsers.tools import tool_parser
from sensorium.parsers.writing import CallDelta

CALL = "<|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>"


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
        ("gemma4", "unsaid", "<|channel>thought\nHm.<channel|>Hello", "Hm.", "Hello"),
        (
            "openai_gptoss",
            "unsaid",
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>",
            "Hm.",
            "Hello",
        ),
        ("openai_gptoss", "unsaid", "<|channel|>final<|message|>Hello", "", "Hello"),
        ("openai_gptoss", "unsaid", "<|channel|>analysis<|message|>cut o", "cut o", ""),
        ("openai_gptoss", "unsaid", "Hello", "", "Hello"),
        (
            "openai_gptoss",
            "unsaid",
            f"<|channel|>analysis<|message|>Hm.<|end|>{CALL}",
            "Hm.",
            CALL,
        ),
        ("granite", "unsaid", "Here is my thought process: Hm. Here is my response: Hello", "Hm.", "Hello"),
    ],
)
def test_where_reasoning_ends(name: str, start: str, text: str, reasoning: str, content: str):
    assert read(name, start, [text]) == (reasoning, content)
    assert read(name, start, list(text)) == (reasoning, content)


BITS = st.sampled_from(
    [
        "<think>", "</think>", "[THINK]", "[/THINK]", "<", "</", "think>", " ", "\n", "a", "Here is ", "<|channel|>",
        "analysis", "final", "to=functions.f", "<|message|>", "<|end|>", "<|start|>assistant", "<|call|>",
        "<|channel>thought", "<channel|>",
    ]
)  # fmt: skip


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


def test_calls_are_found_behind_the_reasoning():
    text = f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>So.<|end|>{CALL}"
    reasoning, content = read("openai_gptoss", "unsaid", list(text))
    calls = tool_parser("openai", ())
    found = [delta for char in content for delta in calls.feed(char)] + calls.finish()
    assert reasoning == "Hm."
    assert "".join(delta for delta in found if isinstance(delta, str)) == "So."
    assert [delta.name for delta in found if isinstance(delta, CallDelta) and delta.name] == ["f"]
    assert "".join(delta.arguments for delta in found if isinstance(delta, CallDelta)) == "{}"
