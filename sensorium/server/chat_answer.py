"""One choice of a chat answer while it grows: reasoning, content and tool calls told apart, whole or piece by piece."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from sensorium.parsers.reasoning import ReasoningParser
from sensorium.parsers.writing import CallDelta, ToolParser
from sensorium.types import Finished, TextDelta, TokenLogprob


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """How answers of a request are read. The parsers are made anew for each choice."""

    reasoning: Callable[[], ReasoningParser] | None = None
    tools: Callable[[], ToolParser] | None = None
    calls_end_turn: bool = False
    """finish_reason is tool_calls where the model itself stopped after a call."""
    parallel: bool = True
    """Without, only the first call is kept."""
    keep_reasoning: bool = True
    """Without, reasoning is left out, its tokens and their log-probabilities too."""


@dataclass(slots=True)
class CallPiece:
    """A piece of a call: id and name come with the first, arguments in pieces."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class News:
    """What a choice got since it was last asked."""

    content: str = ""
    reasoning: str = ""
    calls: list[CallPiece] = field(default_factory=list[CallPiece])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    token_ids: list[int] = field(default_factory=list[int])


class Answer:
    """Takes the events of one choice. `take_news` gives what came since it was last called."""

    def __init__(self, index: int, plan: AnswerPlan, prefix: str = "") -> None:
        """prefix: text that the content begins with, not generated."""
        self.index = index
        self._plan = plan
        self._reasoning = plan.reasoning() if plan.reasoning else None
        self._tools = plan.tools() if plan.tools else None
        self._news = News()
        self._text: list[str] = [prefix]
        self._hidden: list[str] = []
        self.finished: Finished | None = None
        self.num_calls = 0
        self.reasoning_tokens = 0

    @property
    def finish_reason(self) -> str | None:
        if self.finished is None:
            return None
        called = self._plan.calls_end_turn and self.num_calls and self.finished.reason == "stop"
        return "tool_calls" if called else self.finished.reason

    def add(self, event: TextDelta | Finished) -> None:
        if isinstance(event, Finished):
            self._end()
            self.finished = event
            return
        hidden = self._reasoning is not None and self._reasoning.is_reasoning
        content = self._split(event.text)
        if self._reasoning is not None and (hidden or self._reasoning.is_reasoning):
            self.reasoning_tokens += len(event.token_ids)
            hidden = not self._plan.keep_reasoning
        if not hidden:
            self._news.logprobs.extend(event.logprobs)
            self._news.token_ids.extend(event.token_ids)
        self._read(content)

    def take_news(self) -> News:
        news, self._news = self._news, News()
        news.content = "".join(self._text)
        news.reasoning = "".join(self._hidden)
        self._text.clear()
        self._hidden.clear()
        return news

    def _split(self, text: str) -> str:
        """The part of a text that is not reasoning."""
        if self._reasoning is None:
            return text
        reasoning, content = self._reasoning.feed(text)
        self._hide(reasoning)
        return content

    def _hide(self, reasoning: str) -> None:
        if reasoning and self._plan.keep_reasoning:
            self._hidden.append(reasoning)

    def _read(self, content: str) -> None:
        if self._tools is None:
            self._text.append(content)
        elif content:
            self._take(self._tools.feed(content))

    def _end(self) -> None:
        if self._reasoning is not None:
            reasoning, content = self._reasoning.finish()
            self._hide(reasoning)
            self._read(content)
        if self._tools is not None:
            self._take(self._tools.finish())

    def _take(self, deltas: list[str | CallDelta]) -> None:
        for delta in deltas:
            if isinstance(delta, str):
                self._text.append(delta)
            elif delta.index == 0 or self._plan.parallel:
                self._add_call(delta)

    def _add_call(self, delta: CallDelta) -> None:
        calls = self._news.calls
        if delta.name is not None:
            self.num_calls += 1
            ident = f"chatcmpl-tool-{uuid.uuid4().hex}"
            calls.append(CallPiece(delta.index, ident, delta.name, delta.arguments))
        elif calls and calls[-1].index == delta.index:
            calls[-1].arguments += delta.arguments
        else:
            calls.append(CallPiece(delta.index, arguments=delta.arguments))
