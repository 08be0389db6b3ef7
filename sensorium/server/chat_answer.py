"""One choice of a chat answer while it grows: reasoning, content and tool calls told apart, whole or piece by piece."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from sensorium.parsers.writing import CallDelta
from sensorium.server.answer_form import AnswerForm, Piece
from sensorium.types import Finished, TextDelta, TokenLogprob


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

    def __init__(self, index: int, form: AnswerForm, prefix: str = "", *, keep_reasoning: bool = True) -> None:
        """prefix: text that the content begins with, not generated. Without keep_reasoning, reasoning is left out, its
        tokens and their log-probabilities too."""
        self.index = index
        self._splitter = form.splitter()
        self._calls_end_turn = form.tools.mode in ("auto", "required")
        self._keep_reasoning = keep_reasoning
        self._news = News()
        self._text: list[str] = [prefix]
        self._hidden: list[str] = []
        self.finished: Finished | None = None
        self.num_calls = 0
        self.reasoning_tokens = 0

    @property
    def finish_reason(self) -> str | None:
        """tool_calls where the model itself stopped after a call that it chose to make."""
        if self.finished is None:
            return None
        called = self._calls_end_turn and self.num_calls and self.finished.reason == "stop"
        return "tool_calls" if called else self.finished.reason

    def add(self, event: TextDelta | Finished) -> None:
        if isinstance(event, Finished):
            self._take(self._splitter.finish())
            self.finished = event
            return
        pieces = self._splitter.feed(event.text)
        if self._splitter.thinks:
            self.reasoning_tokens += len(event.token_ids)
        if self._keep_reasoning or not self._splitter.thinks:
            self._news.logprobs.extend(event.logprobs)
            self._news.token_ids.extend(event.token_ids)
        self._take(pieces)

    def take_news(self) -> News:
        news, self._news = self._news, News()
        news.content = "".join(self._text)
        news.reasoning = "".join(self._hidden)
        self._text.clear()
        self._hidden.clear()
        return news

    def _take(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if isinstance(piece, CallDelta):
                self._add_call(piece)
            elif isinstance(piece, str):
                self._text.append(piece)
            elif self._keep_reasoning:
                self._hidden.append(piece.text)

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
