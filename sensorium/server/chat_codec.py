"""Chat completions and their chunks."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from sensorium.server.answer_form import AnswerForm
from sensorium.server.chat_answer import Answer, CallPiece, News
from sensorium.server.chat_schema import (
    AssistantReply,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    DeltaAudio,
    FunctionText,
    ReplyAudio,
    ToolCall,
    ToolCallDelta,
)
from sensorium.server.generation import Progress, Tally
from sensorium.server.reports import TokenBytes, report_logprobs, report_prompt_logprobs, report_timings, report_usage
from sensorium.server.schema import ChoiceLogprobs, RequestTimings, StreamOptions, UsageReport
from sensorium.server.speech.answers import SpokenAnswer
from sensorium.server.sse import DONE, frame
from sensorium.types import Finished, Prompt, PromptScored, TokenLogprob


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What all parts of one answer repeat, and what is written in it."""

    id: str
    model: str
    system_fingerprint: str | None
    role: str = "assistant"
    prefix: str = ""
    """Text that every choice begins with (echo)."""
    service_tier: str | None = None
    metadata: dict[str, str] | None = None
    usage: StreamOptions = field(default_factory=StreamOptions)
    prompt_details: bool = True
    token_ids: bool = False
    tokens_as_ids: bool = False
    prompt_text: bool = False
    timings: bool = False
    """Whether the answer, or the chunk with the whole usage, says how long it took."""
    reasoning: bool = True


class ChatCodec:
    """One answer with its choices; see generation.Codec."""

    def __init__(
        self,
        heading: Heading,
        form: AnswerForm,
        prompt: Prompt,
        tallies: Sequence[Tally],
        token_bytes: TokenBytes,
        spoken: SpokenAnswer | None = None,
    ) -> None:
        """spoken: the sound of the only answer, where it is heard."""
        self._spoken = spoken
        self._heading = heading
        self._prompt = prompt
        self._tallies = tallies
        self._token_bytes = token_bytes
        self._created = int(time.time())
        self._scored: Sequence[TokenLogprob | None] | None = None
        self.answers = [
            Answer(number, form, heading.prefix, keep_reasoning=heading.reasoning) for number in range(len(tallies))
        ]

    def take(self, number: int, event: Progress) -> None:
        if isinstance(event, PromptScored):
            self._scored = event.logprobs
        else:
            self.answers[number].add(event)

    # ---- whole ----------------------------------------------------------------------------------------------------

    def reply(self) -> bytes:
        heading = self._heading
        scored = report_prompt_logprobs(self._scored, self._token_bytes) if self._scored is not None else None
        completion = ChatCompletion(
            id=heading.id,
            created=self._created,
            model=heading.model,
            choices=[self._choice(answer) for answer in self.answers],
            service_tier=heading.service_tier,
            system_fingerprint=heading.system_fingerprint,
            usage=self._usage(),
            prompt_logprobs=scored,
            prompt_token_ids=list(self._prompt.ids) if heading.token_ids else None,
            prompt_text=self._shown_prompt(),
            metadata=UNSET if heading.metadata is None else heading.metadata,
            metrics=self._timings(),
        )
        return msgspec.json.encode(completion)

    def _choice(self, answer: Answer) -> Choice:
        news = answer.take_news()
        calls = [
            ToolCall(id=call.id or "", function=FunctionText(name=call.name or "", arguments=call.arguments))
            for call in _joined(news.calls)
        ]
        spoken = self._spoken
        if spoken is not None:
            spoken.transcript = news.content
            spoken.keep(spoken)
        message = AssistantReply(
            role=self._heading.role,
            content=news.content if not spoken and (news.content or not (calls or news.reasoning)) else None,
            audio=None
            if spoken is None
            else ReplyAudio(id=spoken.id, data=spoken.data, expires_at=spoken.expires_at, transcript=spoken.transcript),
            tool_calls=calls or UNSET,
            reasoning=news.reasoning or None,
            reasoning_content=news.reasoning or None,
        )
        finished = answer.finished
        return Choice(
            index=answer.index,
            message=message,
            logprobs=self._logprobs(news),
            finish_reason=answer.finish_reason or "stop",
            stop_reason=finished.stop_reason if finished else None,
            token_ids=news.token_ids if self._heading.token_ids else None,
        )

    # ---- in pieces ------------------------------------------------------------------------------------------------

    def opening(self) -> list[bytes]:
        shown: dict[str, Any] = {"prompt_text": self._shown_prompt()}
        if self._heading.token_ids:
            shown["prompt_token_ids"] = list(self._prompt.ids)
        opened: list[bytes] = []
        for answer in self.answers:
            delta = Delta(role=self._heading.role, content="")
            if self._spoken is not None:
                delta = Delta(role=self._heading.role, audio=DeltaAudio(id=self._spoken.id, transcript=""))
            opened.append(self._chunk([ChunkChoice(index=answer.index, delta=delta)], self._usage_if_asked(), **shown))
            shown = {}
        return opened

    def news(self, numbers: Collection[int]) -> list[bytes]:
        choices = [choice for number in numbers for choice in self._chunk_choices(self.answers[number])]
        return [self._chunk([choice], self._usage_if_asked()) for choice in choices]

    def ending(self) -> list[bytes]:
        if not self._heading.usage.include_usage:
            return [DONE]
        return [self._chunk([], self._usage(), metrics=self._timings()), DONE]

    def _chunk_choices(self, answer: Answer) -> list[ChunkChoice]:
        """What is new in an answer, of which clients see something."""
        news, finished = answer.take_news(), answer.finished
        logprobs = self._logprobs(news)
        ids = news.token_ids if self._heading.token_ids else []
        heard = [ChunkChoice(index=answer.index, delta=Delta(audio=audio)) for audio in self._heard(news, finished)]
        text = news.content if self._spoken is None else ""
        if not (text or news.reasoning or news.calls or ids) and logprobs is None and finished is None:
            return heard
        delta = Delta(
            content=text or UNSET,
            reasoning=news.reasoning or UNSET,
            reasoning_content=news.reasoning or UNSET,
            tool_calls=[_call_delta(piece) for piece in news.calls] or UNSET,
        )
        written = ChunkChoice(
            index=answer.index,
            delta=delta,
            logprobs=logprobs,
            finish_reason=answer.finish_reason,
            stop_reason=finished.stop_reason if finished else UNSET,
            token_ids=ids if self._heading.token_ids else UNSET,
        )
        return [*heard, written]

    def _heard(self, news: News, finished: Finished | None) -> list[DeltaAudio]:
        """What is new of an answer that is spoken: its words, its sound, and at its end how long it may be named."""
        spoken, deltas = self._spoken, list[DeltaAudio]()
        if spoken is None:
            return deltas
        if news.content:
            spoken.transcript += news.content
            deltas.append(DeltaAudio(transcript=news.content))
        if data := spoken.take_sound():
            deltas.append(DeltaAudio(data=data))
        if finished is not None:
            spoken.keep(spoken)
            deltas.append(DeltaAudio(expires_at=spoken.expires_at))
        return deltas

    def _chunk(self, choices: list[ChunkChoice], usage: UsageReport | UnsetType | None, **more: Any) -> bytes:
        heading = self._heading
        chunk = ChatChunk(
            id=heading.id,
            created=self._created,
            model=heading.model,
            choices=choices,
            service_tier=heading.service_tier or UNSET,
            system_fingerprint=heading.system_fingerprint,
            usage=usage,
            **more,
        )
        return frame(msgspec.json.encode(chunk))

    # ---- both -----------------------------------------------------------------------------------------------------

    def _logprobs(self, news: News) -> ChoiceLogprobs | None:
        if not news.logprobs:
            return None
        return report_logprobs(news.logprobs, self._token_bytes, as_ids=self._heading.tokens_as_ids)

    def _shown_prompt(self) -> str | UnsetType:
        return (self._prompt.text or "") if self._heading.prompt_text else UNSET

    def _timings(self) -> RequestTimings | UnsetType:
        return report_timings(self._tallies) if self._heading.timings else UNSET

    def _usage_if_asked(self) -> UsageReport | UnsetType | None:
        if self._heading.usage.continuous_usage_stats:
            return self._usage()
        return None if self._heading.usage.include_usage else UNSET

    def _usage(self) -> UsageReport:
        reasoning = sum(answer.reasoning_tokens for answer in self.answers)
        details = self._heading.prompt_details
        return report_usage(self._tallies, [self._prompt], reasoning=reasoning, details=details)


def _joined(pieces: Sequence[CallPiece]) -> list[CallPiece]:
    """Whole calls from their pieces."""
    calls: dict[int, CallPiece] = {}
    for piece in pieces:
        if piece.index in calls:
            calls[piece.index].arguments += piece.arguments
        else:
            calls[piece.index] = piece
    return list(calls.values())


def _call_delta(piece: CallPiece) -> ToolCallDelta:
    if piece.name is None:
        return ToolCallDelta(index=piece.index, function=FunctionText(arguments=piece.arguments))
    function = FunctionText(name=piece.name, arguments=piece.arguments)
    return ToolCallDelta(index=piece.index, id=piece.id or "", type="function", function=function)
