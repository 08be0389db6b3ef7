"""POST /v1/completions: continue prompts that the client has put together itself, or score them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import RequestError
from sensorium.server.body import decode, read_body
from sensorium.server.chat import failure, unless_gone
from sensorium.server.door import namespace, reply
from sensorium.server.fleet import Fleet, Job
from sensorium.server.metrics import Metrics
from sensorium.server.openai import to_sampling
from sensorium.server.prompts import MAX_PROMPTS, PromptInput, prepare_all, split_prompts
from sensorium.server.schema import Key, Label, PromptTokensDetails, SamplingFields, StreamOptions, UsageReport
from sensorium.server.served import Served
from sensorium.server.sse import EventStream
from sensorium.types import Event, Failed, Finished, Prompt, PromptScored, SamplingParams, TextDelta, TokenLogprob

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

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
    top_logprobs: None = None
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
    system_fingerprint: str


class Completions:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics) -> None:
        self._served = served
        self._config = config
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = self._served.client()
        body = await read_body(scope, receive, self._config.max_body_bytes)
        request = decode(body, COMPLETION_REQUEST, UNSUPPORTED)
        del body
        self._served.check_name(request.model)
        _check(request)
        completing = _Completing(client, self._served, self._metrics, request, scope["state"])
        await unless_gone(receive, completing.run(send))


@dataclass(slots=True)
class _Text:
    """One choice while it grows. `offset` is where its next token begins in the text sent so far."""

    prompt: int
    scored: Sequence[TokenLogprob | None] = ()
    text: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    ids: list[int] = field(default_factory=list[int])
    tokens: int = 0
    offset: int = 0
    begun: bool = False
    score: float = 0.0
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, PromptScored):
            self.scored = event.logprobs
        elif isinstance(event, TextDelta):
            self.text.append(event.text)
            self.logprobs.extend(event.logprobs)
            self.ids.extend(event.token_ids)
            self.tokens += len(event.token_ids)
            self.score += sum(entry.logprob for entry in event.logprobs)
        elif isinstance(event, Finished):
            self.finished = event

    @property
    def mean_logprob(self) -> float:
        return self.score / max(self.tokens, 1)


class _Completing:
    """One request on its way through the engine."""

    def __init__(
        self, client: EngineClient, served: Served, metrics: Metrics, request: CompletionRequest, state: dict[str, Any]
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._request = request
        self._facts: dict[str, Any] = state["facts"]
        self._namespace = namespace(state, request.cache_salt)
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._heading = {
            "id": self._id,
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }
        self._n = request.n or 1
        self._many = max(self._n, request.best_of or 1)
        self._only_scores = request.max_tokens == 0
        self._prompts: list[Prompt] = []
        self._texts: list[_Text] = []
        self._failed = False

    async def run(self, send: Send) -> None:
        self._facts["id"] = self._id
        if self._request.user:
            self._facts["user"] = self._request.user
        special = self._request.add_special_tokens is not False
        self._prompts = await prepare_all(self._client, split_prompts(self._request.prompt, "prompt"), special=special)
        self._texts = [_Text(number) for number in range(len(self._prompts)) for _ in range(self._many)]
        try:
            async with Fleet(self._jobs(), self._client.config.max_num_seqs) as fleet:
                if self._request.stream:
                    await self._stream(fleet, send)
                else:
                    async for events in fleet:
                        self._take(events)
                    await reply(send, self._completion(self._chosen(), usage=self._usage()))
        finally:
            self._account()

    def _jobs(self) -> list[Job]:
        def job(index: int) -> Job:
            prompt = self._prompts[index // self._many]
            return lambda: self._client.submit(
                prompt,
                self._sampling(index % self._many),
                request_id=f"{self._id}-{index}",
                namespace=self._namespace,
                priority=self._request.priority or 0,
            )

        return [job(index) for index in range(len(self._texts))]

    def _sampling(self, choice: int) -> SamplingParams:
        request = self._request
        limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else max(request.max_tokens, 1)
        plain = msgspec.structs.replace(request, logprobs=None, max_tokens=limit)
        sampling = to_sampling(plain, self._client.default_sampling, choice)
        wanted = request.logprobs
        if wanted is None and self._many > self._n:
            wanted = 0
        scored = request.logprobs if request.echo else None
        return replace(sampling, logprobs=wanted, prompt_logprobs=scored)

    async def _stream(self, fleet: Fleet, send: Send) -> None:
        options = self._request.stream_options
        with_usage = options is not None and options.include_usage
        always = options is not None and options.continuous_usage_stats
        async with EventStream(send) as output:
            async for events in fleet:
                self._take(events)
                changed = dict.fromkeys(index for index, _ in events)
                usage = self._usage() if always else None if with_usage else UNSET
                choices = [self._choice(index, self._texts[index]) for index in changed]
                seen = [choice for choice in choices if choice.text or choice.logprobs or choice.finish_reason]
                if payloads := [msgspec.json.encode(self._completion([choice], usage=usage)) for choice in seen]:
                    await output.write(*payloads)
            last = [msgspec.json.encode(self._completion([], usage=self._usage()))] if with_usage else []
            await output.end(*last)

    def _take(self, events: list[tuple[int, Event]]) -> None:
        for index, event in events:
            if isinstance(event, Failed):
                self._failed = True
                raise failure(event)
            self._texts[index].add(event)
            if isinstance(event, Finished):
                self._metrics.finished(event)

    def _chosen(self) -> list[CompletionChoice]:
        """The n best of each prompt's texts, numbered prompt by prompt."""
        choices: list[CompletionChoice] = []
        for start in range(0, len(self._texts), self._many):
            texts = self._texts[start : start + self._many]
            if self._many > self._n:
                texts = sorted(texts, key=lambda text: -text.mean_logprob)[: self._n]
            choices += [self._choice(len(choices) + number, text) for number, text in enumerate(texts)]
        return choices

    def _choice(self, index: int, text: _Text) -> CompletionChoice:
        """What is new in one text."""
        request, prompt = self._request, self._prompts[text.prompt]
        first, text.begun = not text.begun, True
        new, ids, logprobs = "".join(text.text), list(text.ids), list[TokenLogprob | None](text.logprobs)
        if self._only_scores:
            new, ids, logprobs = "", [], []
        spelled_ids = ids
        if first and request.echo:
            new = self._spelled(prompt) + new
            if request.logprobs is not None:
                spelled_ids, logprobs = [*prompt.ids, *ids], [*text.scored, *logprobs]
        report = None
        if request.logprobs is not None and logprobs:
            report, text.offset = report_logprobs(self._client, spelled_ids, logprobs, text.offset)
        text.text.clear()
        text.logprobs.clear()
        text.ids.clear()
        return CompletionChoice(
            index=index,
            text=new,
            logprobs=report,
            finish_reason=text.finished.reason if text.finished else None,
            stop_reason=text.finished.stop_reason if text.finished and not self._only_scores else None,
            token_ids=ids if request.return_token_ids else UNSET,
            prompt_token_ids=list(prompt.ids) if request.return_token_ids and first else UNSET,
        )

    def _spelled(self, prompt: Prompt) -> str:
        return prompt.text or self._client.tokenizer.decode(prompt.ids, skip_special=False)

    def _completion(self, choices: list[CompletionChoice], usage: UsageReport | UnsetType | None) -> Completion:
        return Completion(choices=choices, usage=usage, **self._heading)

    def _usage(self) -> UsageReport:
        prompt = sum(len(prompt.ids) for prompt in self._prompts)
        completion = 0 if self._only_scores else sum(text.tokens for text in self._texts)
        cached = sum(text.finished.usage.cached_tokens for text in self._texts[:: self._many] if text.finished)
        return UsageReport(prompt, completion, prompt + completion, PromptTokensDetails(cached))

    def _account(self) -> None:
        """Write down how the request ended."""
        cut = "error" if self._failed else "abort"
        for text in self._texts:
            if text.finished is None:
                self._metrics.cut(cut)
        reasons = {text.finished.reason if text.finished else cut: None for text in self._texts}
        self._facts.update(
            prompt_tokens=sum(len(prompt.ids) for prompt in self._prompts),
            completion_tokens=sum(text.tokens for text in self._texts),
            finish=",".join(reasons),
        )


def report_logprobs(
    client: EngineClient, ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], offset: int
) -> tuple[CompletionLogprobs, int]:
    """The lists for some tokens, and where in the text the next one begins."""

    def spell(token_id: int) -> str:
        return client.tokenizer.token_bytes(token_id).decode("utf-8", "replace")

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


def _check(request: CompletionRequest) -> None:
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
    if len(split_prompts(request.prompt, "prompt")) * max(request.n or 1, request.best_of or 1) > MAX_PROMPTS:
        raise RequestError(f"prompt: prompts times n may be {MAX_PROMPTS} at most", param="prompt")


COMPLETION_REQUEST = msgspec.json.Decoder(CompletionRequest)
