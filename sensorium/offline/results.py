"""From the events of a request to what LLM returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sensorium.engine.client import Stream
from sensorium.errors import EngineError
from sensorium.models.base import Tokenizer
from sensorium.outputs import CompletionOutput, Logprob, PoolingOutput, PoolingRequestOutput, RequestOutput
from sensorium.types import (
    Failed,
    Finished,
    Pooled,
    PoolingParams,
    Prompt,
    PromptScored,
    SamplingParams,
    TextDelta,
    TokenLogprob,
)

Output = RequestOutput | PoolingRequestOutput[PoolingOutput]
Params = SamplingParams | PoolingParams


@dataclass(slots=True)
class _Answer:
    """The events of one stream, folded."""

    end: Finished
    text: list[str] = field(default_factory=list[str])
    ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    scored: PromptScored | None = None
    pooled: Pooled | None = None


def collect(request_id: str, prompt: Prompt, params: Params, streams: Sequence[Stream], spell: Tokenizer) -> Output:
    """Waits for the streams of one prompt, one for each answer. Raises EngineError where one failed."""
    answers = [_fold(stream) for stream in streams]
    first = answers[0]
    usage = first.end.usage
    if isinstance(params, PoolingParams):
        if first.pooled is None:
            raise EngineError("a pooling request ended without its result")
        data = PoolingOutput(torch.from_numpy(first.pooled.data))
        return PoolingRequestOutput(request_id, data, list(prompt.ids), True, usage.cached_tokens)
    scored, wanted = first.scored, params.prompt_logprobs or 0
    return RequestOutput(
        request_id=request_id,
        prompt=prompt.text,
        prompt_token_ids=list(prompt.ids),
        prompt_logprobs=scored and [item and _logprobs(item, wanted, spell) for item in scored.logprobs],
        outputs=[_completion(index, answer, params.logprobs, spell) for index, answer in enumerate(answers)],
        finished=True,
        metrics=first.end.timings,
        usage=usage,
        num_cached_tokens=usage.cached_tokens,
        num_cache_creation_tokens=usage.prompt_tokens - usage.cached_tokens,
    )


def tokens_of(output: Output) -> tuple[int, int]:
    """Tokens read and written, for the progress bar."""
    written = sum(len(answer.token_ids) for answer in output.outputs) if isinstance(output, RequestOutput) else 0
    return len(output.prompt_token_ids), written


def _fold(stream: Stream) -> _Answer:
    events = list(stream)
    end = events[-1]
    if isinstance(end, Failed):
        raise EngineError(end.message, param=end.param)
    if not isinstance(end, Finished):
        raise EngineError("a stream ended without its last event")
    answer = _Answer(end)
    for event in events:
        if isinstance(event, TextDelta):
            answer.text.append(event.text)
            answer.ids += event.token_ids
            answer.logprobs += event.logprobs
        elif isinstance(event, PromptScored):
            answer.scored = event
        elif isinstance(event, Pooled):
            answer.pooled = event
    return answer


def _completion(index: int, answer: _Answer, wanted: int | None, spell: Tokenizer) -> CompletionOutput:
    scored = answer.logprobs if wanted is not None else None
    return CompletionOutput(
        index=index,
        text="".join(answer.text),
        token_ids=answer.ids,
        cumulative_logprob=None if scored is None else sum(item.logprob for item in scored),
        logprobs=None if scored is None else [_logprobs(item, wanted or 0, spell) for item in scored],
        finish_reason=answer.end.reason,
        stop_reason=answer.end.stop_reason,
    )


def _logprobs(item: TokenLogprob, wanted: int, spell: Tokenizer) -> dict[int, Logprob]:
    """The token of one position first, then its `wanted` likeliest alternatives, then those asked for by name."""
    ranks = {token_id: place for place, (token_id, _) in enumerate(item.top[: wanted if wanted >= 0 else None], 1)}
    found = {item.token_id: Logprob(item.logprob, item.rank or ranks.get(item.token_id), _text(item.token_id, spell))}
    for token_id, value in item.top:
        if token_id not in found:
            found[token_id] = Logprob(value, ranks.get(token_id), _text(token_id, spell))
    return found


def _text(token_id: int, spell: Tokenizer) -> str:
    return spell.decode([token_id], skip_special=False)
