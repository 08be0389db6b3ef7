"""Reasoning apart from the answer: models that think write it first, between two marks, or in a channel of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sensorium.errors import RequestError
from sensorium.parsers.harmony import CHANNEL, FINAL, MESSAGE, SPELLINGS, HarmonyReasoning
from sensorium.parsers.writing import split_at

Start = Literal["open", "closed", "unsaid"]
"""Where a prompt leaves the reasoning."""


@dataclass(frozen=True, slots=True)
class Marks:
    """begins: whether an answer starts inside the reasoning even if the prompt did not open it.

    answer: what the answer proper begins with where the model writes in channels.
    """

    opener: str
    closer: str
    begins: bool = False
    answer: str = ""

    def parser(self, start: Start = "unsaid") -> ReasoningParser | HarmonyReasoning:
        """A fresh one, see ReasoningParser."""
        return HarmonyReasoning() if self.answer else ReasoningParser(self, start)

    @property
    def spellings(self) -> tuple[str, ...]:
        """What must stay in the text for a parser to see, even where it is special tokens."""
        return SPELLINGS if self.answer else (self.opener, self.closer)


REASONING_PARSERS = {
    "deepseek_r1": Marks("<think>", "</think>", begins=True),
    "gemma4": Marks("<|channel>thought", "<channel|>"),
    "glm45": Marks("<think>", "</think>"),
    "granite": Marks("Here is my thought process:", "Here is my response:"),
    "kimi_k2": Marks("<think>", "</think>"),
    "minicpmv": Marks("<think>", "</think>"),
    "mistral": Marks("[THINK]", "[/THINK]"),
    "openai_gptoss": Marks(f"{CHANNEL}analysis{MESSAGE}", "<|end|>", answer=FINAL),
    "qwen3": Marks("<think>", "</think>"),
    "step3": Marks("<think>", "</think>", begins=True),
}


def reasoning_marks(name: str) -> Marks:
    """Raises RequestError with the names there are."""
    if name not in REASONING_PARSERS:
        known = ", ".join(REASONING_PARSERS)
        raise RequestError(f"there is no reasoning parser {name!r}; there are {known}", param="reasoning_parser")
    return REASONING_PARSERS[name]


class ReasoningParser:
    """Splits one answer. Blanks around the reasoning belong to nobody; what is decided depends on characters alone."""

    def __init__(self, marks: Marks, start: Start = "unsaid") -> None:
        """start: whether the prompt ends inside the reasoning, after it, or leaves it to the model."""
        self._marks = marks
        self._buffer = ""
        self._blanks = ""
        self._begun = False
        self._state: Literal["undecided", "reasoning", "content"] = "undecided"
        self._assumed = start == "open" or (start == "unsaid" and marks.begins)
        if start == "closed":
            self._state, self._begun = "content", True

    @property
    def is_reasoning(self) -> bool:
        """Whether what comes next belongs to the reasoning, as far as one can tell."""
        if self._state == "undecided":
            return self._assumed or bool(self._buffer.strip())
        return self._state == "reasoning"

    def feed(self, text: str) -> tuple[str, str]:
        """(reasoning, content) that `text`, the next piece of the answer, makes certain."""
        self._buffer += text
        if self._state == "undecided" and not self._decide():
            return "", ""
        reasoning = ""
        if self._state == "reasoning":
            before, mark, self._buffer = split_at(self._buffer, [self._marks.closer])
            reasoning = self._trimmed(before)
            if mark is None:
                return reasoning, ""
            self._state, self._begun = "content", False
        content, self._buffer = self._buffer, ""
        return reasoning, content if self._begun else self._first(content)

    def finish(self) -> tuple[str, str]:
        """What was held back."""
        rest, self._buffer = self._buffer, ""
        if self._state == "undecided" and self._assumed:
            self._state = "reasoning"
        if self._state == "reasoning":
            return self._trimmed(rest), ""
        return "", rest

    def _decide(self) -> bool:
        """Whether it is known by now where the answer starts."""
        stripped = self._buffer.lstrip()
        if stripped.startswith(self._marks.opener):
            self._state, self._buffer = "reasoning", stripped.removeprefix(self._marks.opener)
        elif self._marks.opener.startswith(stripped):
            return False
        elif self._assumed:
            self._state = "reasoning"
        else:
            self._state, self._begun = "content", True
        return True

    def _trimmed(self, text: str) -> str:
        """Reasoning without the blanks at its two ends."""
        text = text if self._begun else text.lstrip()
        kept = text.rstrip()
        if not kept:
            self._blanks += text if self._begun else ""
            return ""
        written = self._blanks + kept if self._begun else kept
        self._begun, self._blanks = True, text[len(kept) :]
        return written

    def _first(self, content: str) -> str:
        content = content.lstrip()
        self._begun = bool(content)
        return content


def reasoning_parser(name: str, start: Start = "unsaid") -> ReasoningParser | HarmonyReasoning:
    """A fresh parser. Raises RequestError with the names there are."""
    return reasoning_marks(name).parser(start)
