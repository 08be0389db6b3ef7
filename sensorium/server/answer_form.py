"""How an answer is written and read: what the model thinks, what it says, and which tools it calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sensorium.config import ServerConfig
from sensorium.errors import RequestError
from sensorium.params import StructuredOutputs
from sensorium.parsers.reasoning import Marks, Start, reasoning_marks
from sensorium.parsers.writing import CallDelta
from sensorium.server.tools import ToolPlan
from sensorium.types import Message, Prompt

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient


@dataclass(frozen=True, slots=True)
class ReasoningPlan:
    """marks: how this model writes reasoning. start: where the prompt leaves it, see ReasoningParser."""

    marks: Marks
    start: Start = "unsaid"

    @classmethod
    def of(cls, config: ServerConfig, prompt: Prompt, unfinished: Message | None) -> ReasoningPlan | None:
        """unfinished: the message to be continued, if it is not a new one."""
        if config.reasoning_parser is None:
            return None
        marks = reasoning_marks(config.reasoning_parser)
        if unfinished is not None:
            text = "".join(part for part in unfinished.parts if isinstance(part, str))
            opened, closed = text.rfind(marks.opener), text.rfind(marks.closer)
            return cls(marks, "open" if opened > closed else "closed")
        end = (prompt.text or "").rstrip()
        return cls(
            marks, "open" if end.endswith(marks.opener) else "closed" if end.endswith(marks.closer) else "unsaid"
        )


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """For all answers to one prompt."""

    tools: ToolPlan
    reasoning: ReasoningPlan | None

    @classmethod
    def of(cls, config: ServerConfig, prompt: Prompt, tools: ToolPlan, unfinished: Message | None = None) -> AnswerForm:
        """unfinished: the message to be continued, if it is not a new one."""
        return cls(tools, ReasoningPlan.of(config, prompt, unfinished))

    def demands(self, rule: StructuredOutputs | None, client: EngineClient) -> dict[str, Any]:
        """Sampling parameters that make the model write what a splitter reads. rule: what the request itself wants.

        Raises RequestError where the request's rule leaves no room for a tool that must be called.
        """
        wanted: dict[str, Any] = {}
        if rule is not None and self.tools.rule is not None:
            reason = "tool_choice: tools that must be called leave no room for another rule"
            raise RequestError(reason, param="tool_choice")
        rule = rule or self.tools.rule
        reasoning = self.reasoning
        if rule is not None and reasoning is not None and reasoning.start != "closed":  # what is thought before is free
            marks = reasoning.marks
            after = client.tokenizer.encode(marks.answer or marks.closer, allow_special=True)
            rule = replace(rule, after=tuple(after))
        if rule is not None:
            wanted["structured_outputs"] = rule
        spelled = {*self.tools.marks, *(reasoning.marks.spellings if reasoning else ())}
        if spelled and not spelled.isdisjoint(_special_spellings(client)):
            wanted["skip_special_tokens"] = False
        return wanted

    def splitter(self) -> Splitter:
        return Splitter(self)


def _special_spellings(client: EngineClient) -> set[str]:
    """What would be left out of the text."""
    tokenizer = client.tokenizer
    return {tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in tokenizer.special_ids}


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


Piece = str | Thought | CallDelta
"""Of an answer; strings are its content."""


class Splitter:
    """Takes one answer's text as it comes and gives it back in pieces."""

    def __init__(self, form: AnswerForm) -> None:
        reasoning, tools = form.reasoning, form.tools
        self._reasoning = reasoning.marks.parser(reasoning.start) if reasoning else None
        self._calls = tools.parser() if tools.parser else None
        self._parallel = tools.parallel
        self.thinks = False
        """Whether the text fed last belongs to the reasoning, or a part of it does."""

    def feed(self, text: str) -> list[Piece]:
        if self._reasoning is None:
            return self._pieces("", text)
        before = self._reasoning.is_reasoning
        thought, content = self._reasoning.feed(text)
        self.thinks = before or self._reasoning.is_reasoning
        return self._pieces(thought, content)

    def finish(self) -> list[Piece]:
        """What was held back."""
        thought, content = self._reasoning.finish() if self._reasoning else ("", "")
        pieces = self._pieces(thought, content)
        return [*pieces, *self._kept(self._calls.finish())] if self._calls else pieces

    def _pieces(self, thought: str, content: str) -> list[Piece]:
        pieces: list[Piece] = [Thought(thought)] if thought else []
        if content and self._calls:
            pieces += self._kept(self._calls.feed(content))
        elif content:
            pieces.append(content)
        return pieces

    def _kept(self, pieces: Sequence[str | CallDelta]) -> list[str | CallDelta]:
        """Without parallel calls, the first call only."""
        return [piece for piece in pieces if isinstance(piece, str) or self._parallel or piece.index == 0]
