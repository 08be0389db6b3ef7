"""POST /v1/completions: continue prompts that the client has put together itself, or score them."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.envs import Environment, read_environment
from sensorium.errors import RequestError
from sensorium.server.body import decode, read_body
from sensorium.server.generation import Generation, Job, Origin, Progress, Tally, unless_gone
from sensorium.server.metrics import Metrics
from sensorium.server.prompts import MAX_PROMPTS, PromptInput, prepare_all, split_prompts
from sensorium.server.reports import TokenBytes, report_timings
from sensorium.server.sampling import to_sampling
from sensorium.server.schema import (
    Key,
    Label,
    PromptTokensDetails,
    RequestTimings,
    SamplingFields,
    StreamOptions,
    UsageReport,
)
from sensorium.server.served import Served
from sensorium.server.sse import DONE, frame
from sensorium.types import Prompt, PromptScored, SamplingParams, TextDelta, TokenLogprob

DEFAULT_MAX_TOKENS = 16
UNSUPPORTED = {
    "suffix": "text after the answer",
    "prompt_embeds": "a prompt as embeddings",
    "use_beam_search": "beam search",
}


class CompletionRequest(SamplingFields, kw_only=True):
    """POST /v1/completions."""

    prompt: PromptInput
    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None = None
    """16 by default; 0 with echo scores the prompt."""
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # type: ignore[assignment] - a count in this API
    top_logprobs: None = None  # type: ignore[assignment] - there is no such field here
    echo: bool | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=16)] | None = None
    """Generate so many and answer with the n likeliest per token."""
    suffix: None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    user: Label | None = None
    cache_salt: Key | None = None
    priority: Annotated[int, Meta(ge=0, le=1000)] | None = None

    @property
    def many(self) -> int:
        """Texts to generate for each prompt."""
        return max(self.n or 1, self.best_of or 1)

    def prompts(self) -> list[tuple[str, str | list[int]]]:
        """Each prompt with its place for errors."""
        return split_prompts(self.prompt, "prompt")


class CompletionLogprobs(Struct):
    """Parallel lists, one entry per token; text_offset counts characters of the choice's text."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReport | UnsetType | None = UNSET
    system_fingerprint: str | None
    metrics: RequestTimings | UnsetType = UNSET


class Completions:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics) -> None:
        self._served = served
        self._config = config
        self._metrics = metrics
        self._environment = read_environment()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._served.client()
        body = await read_body(scope, receive, self._config.max_body_bytes)
        request = decode(body, COMPLETION_REQUEST, UNSUPPORTED, lenient=self._config.allow_unknown_fields)
        del body
        self._served.check_name(request.model)
        _check(request, self._environment)
        await unless_gone(receive, self._answer(request, scope, send))

    async def _answer(self, request: CompletionRequest, scope: Scope, send: Send) -> None:
        client = self._served.client()
        origin = Origin.of(scope, "cmpl-", salt=request.cache_salt, priority=request.priority or 0)
        if request.user:
            origin.facts["user"] = request.user
        room = client.max_model_len - 1
        prompts = await prepare_all(client, request.prompts(), room, special=request.add_special_tokens is not False)
        jobs = [
            Job(prompt, _sampling(request, client.default_sampling, choice))
            for prompt in prompts
            for choice in range(request.many)
        ]
        generation = Generation(client, self._metrics, origin, jobs)
        timed = self._config.enable_per_request_metrics
        codec = _Codec(request, origin.id, self._served, prompts, generation.tallies, timed=timed)
        if request.stream:
            await generation.stream(codec, send, self._config.sse_keep_alive_interval)
        else:
            await generation.reply(codec, send)


def _sampling(request: CompletionRequest, defaults: SamplingParams, choice: int) -> SamplingParams:
    limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else max(request.max_tokens, 1)
    plain = msgspec.structs.replace(request, logprobs=None, max_tokens=limit)
    sampling = to_sampling(plain, defaults, choice)
    wanted = 0 if request.logprobs is None and request.many > (request.n or 1) else request.logprobs
    scored = request.logprobs if request.echo else None
    return replace(sampling, logprobs=wanted, prompt_logprobs=scored)


@dataclass(slots=True)
class _Text:
    """One choice while it grows. `offset` is where its next token begins in the text passed on so far."""

    scored: Sequence[TokenLogprob | None] = ()
    text: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    ids: list[int] = field(default_factory=list[int])
    offset: int = 0
    begun: bool = False
    score: float = 0.0


class _Codec:
    """Text completions. Jobs are numbered prompt by prompt."""

    def __init__(
        self,
        request: CompletionRequest,
        id_: str,
        served: Served,
        prompts: Sequence[Prompt],
        tallies: Sequence[Tally],
        *,
        timed: bool,
    ) -> None:
        self._request = request
        self._timed = timed
        self._prompts = prompts
        self._tallies = tallies
        self._tokenizer = served.client().tokenizer
        self._options = request.stream_options or StreamOptions()
        self._only_scores = request.max_tokens == 0
        self._texts = [_Text() for _ in tallies]
        self._id, self._created = id_, int(time.time())
        self._model, self._fingerprint = served.name, served.fingerprint

    def take(self, number: int, event: Progress) -> None:
        text = self._texts[number]
        if isinstance(event, PromptScored):
            text.scored = event.logprobs
        elif isinstance(event, TextDelta):
            text.text.append(event.text)
            text.logprobs.extend(event.logprobs)
            text.ids.extend(event.token_ids)
            text.score += sum(entry.logprob for entry in event.logprobs)

    def reply(self) -> bytes:
        """The n best of each prompt's texts."""
        many, n = self._request.many, self._request.n or 1
        choices: list[CompletionChoice] = []
        for start in range(0, len(self._texts), many):
            numbers = list(range(start, start + many))
            if many > n:
                numbers.sort(key=lambda number: -self._texts[number].score / max(self._tallies[number].tokens, 1))
            choices += [self._choice(number, len(choices) + place) for place, number in enumerate(numbers[:n])]
        return self._encode(choices, self._usage(), self._timings())

    def opening(self) -> Sequence[bytes]:
        return ()

    def news(self, numbers: Collection[int]) -> Sequence[bytes]:
        usage = None if self._options.include_usage else UNSET
        if self._options.continuous_usage_stats:
            usage = self._usage()
        choices = [self._choice(number, number) for number in numbers]
        seen = [choice for choice in choices if choice.text or choice.logprobs or choice.finish_reason]
        return [frame(self._encode([choice], usage)) for choice in seen]

    def ending(self) -> Sequence[bytes]:
        if not self._options.include_usage:
            return [DONE]
        return [frame(self._encode([], self._usage(), self._timings())), DONE]

    def _timings(self) -> RequestTimings | UnsetType:
        return report_timings(self._tallies) if self._timed else UNSET

    def _choice(self, number: int, index: int) -> CompletionChoice:
        """What is new in one text."""
        request, text, finished = self._request, self._texts[number], self._tallies[number].finished
        prompt = self._prompts[number // request.many]
        first, text.begun = not text.begun, True
        new, ids, logprobs = "".join(text.text), list(text.ids), list[TokenLogprob | None](text.logprobs)
        for parts in (text.text, text.logprobs, text.ids):
            parts.clear()
        if self._only_scores:
            new, ids, logprobs = "", [], []
        spelled = ids
        if first and request.echo:
            new = (prompt.text or self._tokenizer.decode(prompt.ids, skip_special=False)) + new
            spelled, logprobs = [*prompt.ids, *ids], [*text.scored, *logprobs]
        report = None
        if request.logprobs is not None and logprobs:
            report, text.offset = report_logprobs(self._tokenizer.token_bytes, spelled, logprobs, text.offset)
        return CompletionChoice(
            index=index,
            text=new,
            logprobs=report,
            finish_reason=finished.reason if finished else None,
            stop_reason=finished.stop_reason if finished and not self._only_scores else None,
            token_ids=ids if request.return_token_ids else UNSET,
            prompt_token_ids=list(prompt.ids) if request.return_token_ids and first else UNSET,
        )

    def _encode(
        self,
        choices: list[CompletionChoice],
        usage: UsageReport | UnsetType | None,
        timings: RequestTimings | UnsetType = UNSET,
    ) -> bytes:
        completion = Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            system_fingerprint=self._fingerprint,
            metrics=timings,
        )
        return msgspec.json.encode(completion)

    def _usage(self) -> UsageReport:
        prompt = sum(len(prompt.ids) for prompt in self._prompts)
        completion = 0 if self._only_scores else sum(tally.tokens for tally in self._tallies)
        ends = [tally.finished for tally in self._tallies[:: self._request.many]]
        cached = sum(end.usage.cached_tokens for end in ends if end)
        return UsageReport(prompt, completion, prompt + completion, PromptTokensDetails(cached, text_tokens=prompt))


def report_logprobs(
    token_bytes: TokenBytes, ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], offset: int
) -> tuple[CompletionLogprobs, int]:
    """The lists for some tokens, and where in the text the next one begins."""

    def spell(token_id: int) -> str:
        return token_bytes(token_id).decode("utf-8", "replace")

    report = CompletionLogprobs([], [], [], [])
    for token_id, entry in zip(ids, logprobs, strict=False):
        token = spell(token_id)
        report.tokens.append(token)
        report.text_offset.append(offset)
        offset += len(token)
        report.token_logprobs.append(None if entry is None else max(entry.logprob, -9999.0))
        if entry is None:
            report.top_logprobs.append(None)
            continue
        top: dict[str, float] = {}
        for other, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            # Two tokens may be spelled alike: the likelier one speaks for both, but the chosen one for itself.
            name = spell(other)
            if name not in top or other == entry.token_id:
                top[name] = max(logprob, -9999.0)
        report.top_logprobs.append(top)
    return report, offset


def _check(request: CompletionRequest, environment: Environment) -> None:
    """What the types cannot say: fields that make sense only together."""
    if request.stream_options is not None and not request.stream:
        raise RequestError("stream_options: only with stream", param="stream_options")
    if request.max_tokens == 0 and not request.echo:
        raise RequestError("max_tokens: 0 only with echo, to score the prompt", param="max_tokens")
    if request.max_tokens and (request.min_tokens or 0) > request.max_tokens:
        raise RequestError("min_tokens: larger than max_tokens", param="min_tokens")
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise RequestError("best_of: smaller than n", param="best_of")
    if request.stream and (request.best_of or 1) > (request.n or 1):
        raise RequestError("best_of: the best are known at the end only, so not with stream", param="best_of")
    choices, most = max(request.n or 1, request.best_of or 1), environment.max_n_sequences
    if choices > most:
        name = "n" if (request.n or 1) > most else "best_of"
        reason = f"{name}: {choices} is more than the {most} that SENSORIUM_MAX_N_SEQUENCES allows"
        raise RequestError(reason, param=name)
    if (count := len(request.prompts())) > environment.max_completion_prompts:
        most = environment.max_completion_prompts
        reason = f"prompt: {count} prompts are more than the {most} that SENSORIUM_MAX_COMPLETION_PROMPTS allows"
        raise RequestError(reason, param="prompt")
    if len(request.prompts()) * request.many > MAX_PROMPTS:
        raise RequestError(f"prompt: prompts times n may be {MAX_PROMPTS} at most", param="prompt")


COMPLETION_REQUEST = msgspec.json.Decoder(CompletionRequest)
