"""Usage and log-probabilities as the OpenAI API writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from msgspec import UNSET, UnsetType

from sensorium.server.generation import Tally, distinct
from sensorium.server.schema import (
    ChoiceLogprobs,
    CompletionTokensDetails,
    ContentLogprob,
    PromptLogprob,
    PromptTokensDetails,
    RequestTimings,
    TopLogprob,
    UsageReport,
)
from sensorium.types import SOUND_RATE, Prompt, TokenLogprob

TokenBytes = Callable[[int], bytes]
LEAST = -9999.0
"""JSON has no minus infinity."""
CODES_PER_S = 25
"""Of the speech LM: they are the tokens of sound."""


def audio_tokens(sound_bytes: int) -> int:
    """Of 16-bit samples at SOUND_RATE."""
    return round(sound_bytes / 2 / SOUND_RATE * CODES_PER_S)


def report_usage(
    tallies: Sequence[Tally], prompts: Sequence[Prompt], *, reasoning: int = 0, details: bool = True
) -> UsageReport:
    """Tokens of all choices so far; each prompt counts once."""
    spoken = audio_tokens(sum(tally.sound_bytes for tally in tallies))
    completion = sum(tally.tokens for tally in tallies) + spoken
    prompts = distinct(prompts)
    total = sum(len(prompt.ids) for prompt in prompts)
    media: dict[str, int] = {}
    for prompt in prompts:
        for modality, count in prompt.media_tokens().items():
            media[modality] = media.get(modality, 0) + count
    cached = max((tally.finished.usage.cached_tokens for tally in tallies if tally.finished), default=0)
    written = max(total - cached, 0) if any(tally.finished for tally in tallies) else 0
    found = PromptTokensDetails(
        cached_tokens=cached,
        image_tokens=media.get("image", 0),
        audio_tokens=media.get("audio", 0),
        video_tokens=media.get("video", 0),
        text_tokens=total - sum(media.values()),
        cache_write_tokens=written,
        multimodal_tokens=media,
        created_cache_tokens=written,
    )
    hidden = CompletionTokensDetails(reasoning, spoken)
    return UsageReport(total, completion, total + completion, found if details else None, hidden)


def report_timings(tallies: Sequence[Tally]) -> RequestTimings | UnsetType:
    """How long a single answer took. Several share their steps, so that no time is any one's own: nothing then."""
    finished = tallies[0].finished if len(tallies) == 1 else None
    if finished is None or finished.timings.ttft_s is None:
        return UNSET
    timings, tokens = finished.timings, finished.usage.completion_tokens
    ttft_s = finished.timings.ttft_s
    return RequestTimings(
        time_to_first_token_ms=round(1000 * ttft_s, 3),
        generation_time_ms=round(1000 * timings.total_s, 3),
        queue_time_ms=round(1000 * timings.queue_s, 3),
        mean_itl_ms=round(1000 * (timings.total_s - ttft_s) / (tokens - 1), 3) if tokens > 1 else None,
        tokens_per_second=round(tokens / timings.total_s, 3),
    )


def report_logprobs(
    logprobs: Iterable[TokenLogprob], token_bytes: TokenBytes, *, as_ids: bool = False
) -> ChoiceLogprobs:
    """as_ids: tokens as token_id:N in place of their text."""

    def top(token_id: int, logprob: float) -> TopLogprob:
        spelling = token_bytes(token_id)
        token = f"token_id:{token_id}" if as_ids else spelling.decode("utf-8", "replace")
        return TopLogprob(token, max(logprob, LEAST), list(spelling))

    content: list[ContentLogprob] = []
    for entry in logprobs:
        own = top(entry.token_id, entry.logprob)
        content.append(ContentLogprob(own.token, own.logprob, own.bytes, [top(*pair) for pair in entry.top]))
    return ChoiceLogprobs(content)


def report_prompt_logprobs(
    scored: Sequence[TokenLogprob | None], token_bytes: TokenBytes
) -> list[dict[str, PromptLogprob] | None]:
    """For each prompt token the likeliest ones and itself, by id; nothing for the first."""
    report: list[dict[str, PromptLogprob] | None] = []
    for entry in scored:
        if entry is None:
            report.append(None)
            continue
        found = {str(token): (logprob, rank) for rank, (token, logprob) in enumerate(entry.top, 1)}
        found[str(entry.token_id)] = (entry.logprob, entry.rank)
        report.append(
            {
                token: PromptLogprob(max(logprob, LEAST), rank, token_bytes(int(token)).decode("utf-8", "replace"))
                for token, (logprob, rank) in found.items()
            }
        )
    return report
