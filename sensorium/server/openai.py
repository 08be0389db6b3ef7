"""Between the OpenAI API and the engine's types: requests in, replies and chunks out. Pure functions and one fold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from sensorium.errors import RequestError
from sensorium.server.generation import Tally
from sensorium.server.schema import (
    AssistantReply,
    AudioPart,
    AudioUrlPart,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    ContentLogprob,
    Delta,
    ImagePart,
    Part,
    PromptTokensDetails,
    SamplingFields,
    TextPart,
    TopLogprob,
    UsageReport,
    VideoPart,
)
from sensorium.types import (
    ChatOptions,
    Finished,
    MediaRef,
    Message,
    Role,
    SamplingParams,
    TextDelta,
    TokenLogprob,
)

TokenBytes = Callable[[int], bytes]


# ---- requests -----------------------------------------------------------------------------------------------------


def check(request: ChatRequest) -> None:
    """What the types cannot say: fields that make sense only together."""
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options: only with stream", param="stream_options")
    if request.top_logprobs and not request.logprobs:
        raise RequestError("top_logprobs: only with logprobs", param="top_logprobs")
    if request.add_generation_prompt and request.continue_final_message:
        reason = "continue_final_message: not together with add_generation_prompt"
        raise RequestError(reason, param="continue_final_message")
    limit = request.max_completion_tokens or request.max_tokens
    if limit is not None and (request.min_tokens or 0) > limit:
        raise RequestError("min_tokens: larger than max_tokens", param="min_tokens")


def to_messages(request: ChatRequest) -> list[Message]:
    """The conversation, its media as references that carry their place for error messages."""
    video: dict[str, Any] = {}
    if request.media_io_kwargs is not None and request.media_io_kwargs.video is not None:
        video = _given(request.media_io_kwargs.video)
    return [_message(message, f"messages[{number}]", video) for number, message in enumerate(request.messages)]


def to_options(request: ChatRequest) -> ChatOptions:
    continues = bool(request.continue_final_message)
    generates = request.add_generation_prompt
    return ChatOptions(
        add_generation_prompt=not continues if generates is None else generates,
        continue_final_message=continues,
        template_kwargs=request.chat_template_kwargs or {},
        media_kwargs=request.mm_processor_kwargs or {},
    )


def to_sampling(request: SamplingFields, defaults: SamplingParams, choice: int = 0) -> SamplingParams:
    """The model's defaults but for what is given. With a seed, each of the n choices has its own."""
    given = {field: getattr(request, field) for field in SamplingFields.__struct_fields__}
    given = {name: value for name, value in given.items() if value is not None}
    if "max_completion_tokens" in given:
        given["max_tokens"] = given.pop("max_completion_tokens")
    if "stop" in given:
        given["stop"] = (given["stop"],) if isinstance(given["stop"], str) else tuple(given["stop"])
    if "stop_token_ids" in given:
        given["stop_token_ids"] = tuple(given["stop_token_ids"])
    if "seed" in given:
        given["seed"] = (given["seed"] + choice) % (1 << 63)
    top = given.pop("top_logprobs", 0)
    given["logprobs"] = top if given.get("logprobs") else None
    return replace(defaults, **given)


def _given(options: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(options).items() if value is not None}


def _message(message: ChatMessage, place: str, video: dict[str, Any]) -> Message:
    role: str = message.__struct_config__.tag  # type: ignore[assignment] - the tag of these structs is a str
    content: Sequence[str | Part] = [message.content] if isinstance(message.content, str) else message.content
    parts = [_part(part, f"{place}.content[{number}]", video) for number, part in enumerate(content)]
    return Message("system" if role == "developer" else _role(role), tuple(parts))


def _role(role: str) -> Role:
    return role  # type: ignore[return-value] - the schema lets no other pass


def _part(part: str | Part, place: str, video: dict[str, Any]) -> str | MediaRef:
    match part:
        case str():
            return part
        case TextPart():
            return part.text
        case ImagePart():
            options = {"max_slice_nums": 1} if part.image_url.detail == "low" else {}
            return MediaRef("image", part.image_url.url, f"{place}.image_url", options)
        case VideoPart():
            return MediaRef("video", part.video_url.url, f"{place}.video_url", video)
        case AudioUrlPart():
            return MediaRef("audio", part.audio_url.url, f"{place}.audio_url")
        case AudioPart():
            data = part.input_audio.data
            source = data if data.startswith("data:") else f"data:audio/any;base64,{data}"
            return MediaRef("audio", source, f"{place}.input_audio")


# ---- answers ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Answer:
    """One choice while it grows: what has arrived, and the part of it that was not passed on yet."""

    index: int
    text: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    finished: Finished | None = None

    def add(self, event: TextDelta | Finished) -> None:
        if isinstance(event, Finished):
            self.finished = event
        else:
            self.text.append(event.text)
            self.logprobs.extend(event.logprobs)

    def take(self, token_bytes: TokenBytes) -> tuple[str, ChoiceLogprobs | None]:
        """Text and log-probabilities since the last call."""
        text = "".join(self.text)
        logprobs = report_logprobs(self.logprobs, token_bytes) if self.logprobs else None
        self.text.clear()
        self.logprobs.clear()
        return text, logprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What all chunks of one answer repeat."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def chunk(self, *choices: ChunkChoice, usage: UsageReport | msgspec.UnsetType | None = msgspec.UNSET) -> ChatChunk:
        return ChatChunk(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=list(choices),
            usage=usage,
            system_fingerprint=self.system_fingerprint,
        )

    def completion(self, choices: list[Choice], usage: UsageReport, metadata: dict[str, str] | None) -> ChatCompletion:
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=choices,
            usage=usage,
            system_fingerprint=self.system_fingerprint,
            metadata=msgspec.UNSET if metadata is None else metadata,
        )


def to_choice(answer: Answer, finished: Finished, token_bytes: TokenBytes) -> Choice:
    text, logprobs = answer.take(token_bytes)
    return Choice(
        index=answer.index,
        message=AssistantReply(text),
        logprobs=logprobs,
        finish_reason=finished.reason,
        stop_reason=finished.stop_reason,
    )


def to_chunk_choice(answer: Answer, token_bytes: TokenBytes) -> ChunkChoice | None:
    """What is new in an answer; None if that is nothing a client could see."""
    text, logprobs = answer.take(token_bytes)
    finished = answer.finished
    if not text and logprobs is None and finished is None:
        return None
    return ChunkChoice(
        index=answer.index,
        delta=Delta(content=text) if text else Delta(),
        logprobs=logprobs,
        finish_reason=finished.reason if finished else None,
        stop_reason=finished.stop_reason if finished else msgspec.UNSET,
    )


def report_usage(tallies: Sequence[Tally], prompt_tokens: int, media_tokens: dict[str, int]) -> UsageReport:
    """Tokens of all choices so far; the prompt counts once."""
    completion = sum(tally.tokens for tally in tallies)
    cached = max((tally.finished.usage.cached_tokens for tally in tallies if tally.finished), default=0)
    details = PromptTokensDetails(
        cached_tokens=cached,
        image_tokens=media_tokens.get("image", 0),
        audio_tokens=media_tokens.get("audio", 0),
        video_tokens=media_tokens.get("video", 0),
    )
    return UsageReport(prompt_tokens, completion, prompt_tokens + completion, details)


def report_logprobs(logprobs: Iterable[TokenLogprob], token_bytes: TokenBytes) -> ChoiceLogprobs:
    def top(token_id: int, logprob: float) -> TopLogprob:
        spelling = token_bytes(token_id)
        return TopLogprob(spelling.decode("utf-8", "replace"), max(logprob, -9999.0), list(spelling))

    content: list[ContentLogprob] = []
    for entry in logprobs:
        own = top(entry.token_id, entry.logprob)
        content.append(ContentLogprob(own.token, own.logprob, own.bytes, [top(*pair) for pair in entry.top]))
    return ChoiceLogprobs(content)
