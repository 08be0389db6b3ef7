"""POST /v1/completions: continue prompts that the client has put together itself, or score them."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.envs import Environment
from sensorium.errors import RequestError
from sensorium.server.beams import check_beams, search_beams
from sensorium.server.door import read_request
from sensorium.server.generation import Generation, Job, Origin, Progress, Tally, send_json, unless_gone
from sensorium.server.metrics import Metrics
from sensorium.server.prompts import MAX_PROMPTS, PromptInput, prepare_all, split_prompts, truncate
from sensorium.server.reports import TokenBytes, report_prompt_logprobs, report_timings
from sensorium.server.sampling import check_counts, check_logprobs, to_sampling
from sensorium.server.schema import (
    Choices,
    Key,
    Label,
    Priority,
    PromptLogprob,
    PromptTokensDetails,
    RequestTimings,
    Salt,
    SamplingFields,
    StreamInterval,
    StreamOptions,
    TopCount,
    Truncation,
    UsageReport,
    refuse_foreign,
)
from sensorium.server.served import Served
from sensorium.server.sse import DONE, frame
from sensorium.types import Prompt, PromptScored, SamplingParams, TextDelta, TokenLogprob

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

DEFAULT_MAX_TOKENS = 16
UNSUPPORTED = {
    "suffix": "text after the answer",
    "prompt_embeds": "a prompt as embeddings",
}


class CompletionRequest(SamplingFields, kw_only=True):
    """POST /v1/completions."""

    prompt: PromptInput
    model: str | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None = None
    """16 by default; 0 with echo scores the prompt."""
    logprobs: TopCount | None = None  # type: ignore[assignment] - a count in this API
    top_logprobs: None = None  # type: ignore[assignment] - there is no such field here
    prompt_logprobs: TopCount | None = None
    echo: bool | None = None
    n: Choices | None = None
    best_of: Choices | None = None
    """Generate so many and answer with the n likeliest per token."""
    use_beam_search: bool | None = None
    """Answer with the n best beams of each prompt."""
    length_penalty: Annotated[float, Meta(ge=-10, le=10)] | None = None
    suffix: None = None
    prompt_embeds: None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: StreamInterval | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Truncation | None = None
    """Keep so many tokens of each prompt; -1 is as many as leave room for the answer."""
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    request_id: Key | None = None
    user: Label | None = None
    session_id: Label | None = None
    cache_salt: Salt | None = None
    priority: Priority | None = None

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
    token_ids: list[int] | UnsetType | None = UNSET
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType | None = UNSET


class Completion(Struct, kw_only=True):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReport | UnsetType | None = UNSET
    service_tier: UnsetType | None = UNSET
    system_fingerprint: str | None
    kv_transfer_params: UnsetType | None = UNSET
    metrics: RequestTimings | UnsetType = UNSET


class Completions:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics) -> None:
        self._served = served
        self._config = config
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, _ = await read_request(self._served, self._config, COMPLETION_REQUEST, UNSUPPORTED, scope, receive)
        _check(request, self._served.client(), self._served.environment)
        await unless_gone(receive, self._answer(request, scope, send))

    async def _answer(self, request: CompletionRequest, scope: Scope, send: Send) -> None:
        client, config = self._served.client(), self._config
        origin = Origin.of(
            scope, "cmpl-", request_id=request.request_id, salt=request.cache_salt, priority=request.priority
        )
        origin.note(user=request.user, session_id=request.session_id)
        prompts = await prepare_all(
            client,
            request.prompts(),
            client.max_model_len - 1,
            special=request.add_special_tokens is not False,
            cut=lambda prompt: _cut(request, prompt, client.max_model_len),
        )
        jobs = [
            Job(prompt, _sampling(request, client.default_sampling, choice))
            for prompt in prompts
            for choice in range(request.many)
        ]
        generation = Generation(client, self._metrics, origin, jobs, interval=request.stream_interval)
        codec = _Codec(request, origin.id, self._served, config, prompts, generation.tallies)
        if request.use_beam_search:
            longest = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
            for number, prompt in enumerate(prompts):
                await search_beams(
                    client, request, origin, prompt, generation.tallies, codec, number * request.many, longest
                )
            await send_json(send, codec.reply())
        elif request.stream:
            await generation.stream(codec, send, config.sse_keep_alive_interval)
        else:
            await generation.reply(codec, send)


def _cut(request: CompletionRequest, prompt: Prompt, context: int) -> Prompt:
    count = request.truncate_prompt_tokens
    if count == -1:
        limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
        count = max(context - max(limit, 1), 1)
    return prompt if count is None else truncate(prompt, count, request.truncation_side or "left")


def _sampling(request: CompletionRequest, defaults: SamplingParams, choice: int) -> SamplingParams:
    limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else max(request.max_tokens, 1)
    plain = msgspec.structs.replace(request, logprobs=None, max_tokens=limit)
    wanted = 0 if request.logprobs is None and request.many > (request.n or 1) else request.logprobs
    scored = [
        count for count in (request.prompt_logprobs, request.logprobs if request.echo else None) if count is not None
    ]
    most = -1 if -1 in scored else max(scored, default=None)
    return to_sampling(plain, defaults, choice, logprobs=wanted, prompt_logprobs=most)


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
        config: ServerConfig,
        prompts: Sequence[Prompt],
        tallies: Sequence[Tally],
    ) -> None:
        self._request = request
        self._config = config
        self._prompts = prompts
        self._tallies = tallies
        self._tokenizer = served.client().tokenizer
        self._options = request.stream_options or StreamOptions()
        if config.enable_force_include_usage:
            self._options = StreamOptions(include_usage=True, continuous_usage_stats=True)
        as_ids = request.return_tokens_as_token_ids
        self._as_ids = config.return_tokens_as_token_ids if as_ids is None else as_ids
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
            if event.logprobs:
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
        for choice in choices:
            for name in ("token_ids", "prompt_logprobs", "prompt_token_ids"):
                if getattr(choice, name) is UNSET:
                    setattr(choice, name, None)
        return self._encode(choices, self._usage(), self._timings(), service_tier=None, kv_transfer_params=None)

    def opening(self) -> Sequence[bytes]:
        return ()

    def news(self, numbers: Collection[int]) -> Sequence[bytes]:
        usage = None if self._options.include_usage else UNSET
        if self._options.continuous_usage_stats:
            usage = self._usage()
        frames: list[bytes] = []
        for number in numbers:
            new = self._choice(number, number)
            if new.text or new.token_ids or new.finish_reason or new.logprobs or new.prompt_token_ids:
                frames.append(frame(self._encode([new], usage)))
        return frames

    def ending(self) -> Sequence[bytes]:
        if not self._options.include_usage:
            return [DONE]
        return [frame(self._encode([], self._usage(), self._timings())), DONE]

    def _timings(self) -> RequestTimings | UnsetType:
        return report_timings(self._tallies) if self._config.enable_per_request_metrics else UNSET

    def _choice(self, number: int, index: int) -> CompletionChoice:
        """What is new in one text."""
        request, text, finished = self._request, self._texts[number], self._tallies[number].finished
        prompt = self._prompts[number // request.many]
        first, text.begun = not text.begun, True
        new, ids = "".join(text.text), list(text.ids)
        logprobs: list[TokenLogprob | None] = [*text.logprobs]
        for parts in (text.text, text.logprobs, text.ids):
            parts.clear()
        if self._only_scores:
            new, ids, logprobs = "", [], []
        spelled = ids
        if first and request.echo:
            new = (prompt.text or self._tokenizer.decode(prompt.ids, skip_special=False)) + new
            spelled, logprobs = [*prompt.ids, *ids], [*_fewer(text.scored, request.logprobs), *logprobs]
        report = None
        if request.logprobs is not None and logprobs:
            report, text.offset = report_logprobs(
                self._tokenizer.token_bytes, spelled, logprobs, text.offset, as_ids=self._as_ids
            )
        return CompletionChoice(
            index=index,
            text=new,
            logprobs=report,
            finish_reason=finished.reason if finished else None,
            stop_reason=finished.stop_reason if finished and not self._only_scores else None,
            token_ids=ids if request.return_token_ids else UNSET,
            prompt_logprobs=self._prompt_logprobs(text) if first and text.scored else UNSET,
            prompt_token_ids=list(prompt.ids) if request.return_token_ids and first else UNSET,
        )

    def _prompt_logprobs(self, text: _Text) -> list[dict[str, PromptLogprob] | None] | UnsetType:
        wanted = self._request.prompt_logprobs
        if wanted is None:
            return UNSET
        return report_prompt_logprobs(_fewer(text.scored, wanted), self._tokenizer.token_bytes)

    def _encode(
        self,
        choices: list[CompletionChoice],
        usage: UsageReport | UnsetType | None,
        timings: RequestTimings | UnsetType = UNSET,
        **more: Any,
    ) -> bytes:
        completion = Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            system_fingerprint=self._fingerprint,
            metrics=timings,
            **more,
        )
        return msgspec.json.encode(completion)

    def _usage(self) -> UsageReport:
        prompt = sum(len(prompt.ids) for prompt in self._prompts)
        completion = 0 if self._only_scores else sum(tally.tokens for tally in self._tallies)
        ends = [tally.finished for tally in self._tallies[:: self._request.many]]
        cached = sum(end.usage.cached_tokens for end in ends if end)
        details = PromptTokensDetails(cached, text_tokens=prompt)
        shown = details if self._config.enable_prompt_tokens_details else None
        return UsageReport(prompt, completion, prompt + completion, shown)


def _fewer(scored: Sequence[TokenLogprob | None], count: int | None) -> list[TokenLogprob | None]:
    """With the `count` likeliest tokens at each place, where more were computed."""
    if count is None or count < 0:
        return list(scored)
    return [entry and replace(entry, top=entry.top[:count]) for entry in scored]


def report_logprobs(
    token_bytes: TokenBytes,
    ids: Sequence[int],
    logprobs: Sequence[TokenLogprob | None],
    offset: int,
    *,
    as_ids: bool = False,
) -> tuple[CompletionLogprobs, int]:
    """The lists for some tokens, and where in the text the next one begins. as_ids: see reports.report_logprobs."""

    def spell(token_id: int) -> str:
        return token_bytes(token_id).decode("utf-8", "replace")

    def name_of(token_id: int) -> str:
        return f"token_id:{token_id}" if as_ids else spell(token_id)

    report = CompletionLogprobs([], [], [], [])
    for token_id, entry in zip(ids, logprobs, strict=False):
        report.tokens.append(name_of(token_id))
        report.text_offset.append(offset)
        offset += len(spell(token_id))
        report.token_logprobs.append(None if entry is None else max(entry.logprob, -9999.0))
        if entry is None:
            report.top_logprobs.append(None)
            continue
        top: dict[str, float] = {}
        for other, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            # Two tokens may be spelled alike: the likelier one speaks for both, but the chosen one for itself.
            name = name_of(other)
            if name not in top or other == entry.token_id:
                top[name] = max(logprob, -9999.0)
        report.top_logprobs.append(top)
    return report, offset


def _check(request: CompletionRequest, client: EngineClient, environment: Environment) -> None:
    """What the types cannot say: fields that make sense only together, or only for some servers."""
    refuse_foreign(request)
    n, best_of = request.n or 1, request.best_of
    beams, streams = bool(request.use_beam_search), bool(request.stream)
    wrong = {
        "stream_options": (request.stream_options is not None and not streams, "only with stream"),
        "prompt_logprobs": (bool(request.prompt_logprobs) and streams, "not with stream"),
        "max_tokens": (request.max_tokens == 0 and not request.echo, "0 only with echo, to score the prompt"),
        "min_tokens": (
            bool(request.max_tokens) and (request.min_tokens or 0) > (request.max_tokens or 0),
            "larger than max_tokens",
        ),
        "best_of": (best_of is not None and best_of < n, "smaller than n"),
        "length_penalty": (request.length_penalty is not None and not beams, "only with use_beam_search"),
        "truncation_side": (
            request.truncation_side is not None and request.truncate_prompt_tokens is None,
            "only with truncate_prompt_tokens",
        ),
        "truncate_prompt_tokens": (request.truncate_prompt_tokens == 0, "must be at least 1, or -1"),
    }
    for name, (is_wrong, reason) in wrong.items():
        if is_wrong:
            raise RequestError(f"{name}: {reason}", param=name)
    if (streams or beams) and (best_of or 1) > n:
        raise RequestError("best_of: more than n neither with stream nor with beams", param="best_of")
    if beams:
        check_beams(request)
    for name in ("logprobs", "prompt_logprobs"):
        check_logprobs(name, getattr(request, name), client.config.max_logprobs)
    check_counts(request.n, best_of, request.stop, environment)
    count = len(request.prompts())
    if count > environment.max_completion_prompts:
        most = environment.max_completion_prompts
        reason = f"prompt: {count} prompts are more than the {most} that SENSORIUM_MAX_COMPLETION_PROMPTS allows"
        raise RequestError(reason, param="prompt")
    if count * request.many > MAX_PROMPTS:
        raise RequestError(f"prompt: prompts times n may be {MAX_PROMPTS} at most", param="prompt")


COMPLETION_REQUEST = msgspec.json.Decoder(CompletionRequest)
