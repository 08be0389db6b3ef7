"""Beam search on top of the engine: every step asks for the likeliest next tokens of each beam. The prefix cache makes
a step cost about a token per beam.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sensorium.errors import SensoriumError, UnsupportedError
from sensorium.types import BeamSearchParams, Event, Failed, FinishReason, Prompt, SamplingParams, TextDelta

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient, Stream

Ranked = Sequence[tuple[int, float]]
"""Token ids with log-probabilities, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Beam:
    """One continuation. score: cum_logprob / number of tokens ** length_penalty, the end token counted."""

    token_ids: tuple[int, ...]
    cum_logprob: float
    score: float
    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Path:
    """Tokens of a beam and their score so far."""

    ids: tuple[int, ...] = ()
    logprob: float = 0.0


class BeamSearch:
    """The search itself, without an engine: `width` best paths, lengthened by one token per advance()."""

    def __init__(self, params: BeamSearchParams, max_tokens: int, ends: frozenset[int]) -> None:
        """max_tokens: of params, or fewer where the context ends. ends: ids that end a text."""
        self._params = params
        self._max_tokens = max_tokens
        self._ends: frozenset[int] = frozenset() if params.ignore_eos else ends
        self.live = [Path()]
        self._ended: list[Path] = []

    @property
    def is_over(self) -> bool:
        if not self.live or len(self.live[0].ids) >= self._max_tokens:
            return True
        if len(self._ended) < self._params.beam_width:
            return False
        # No path that goes on can come to a better score than this: its probability only falls.
        reach = self._max_tokens if self._params.length_penalty > 0 else len(self.live[0].ids) + 1
        best = max(path.logprob for path in self.live) / reach**self._params.length_penalty
        return best <= self._score(self._ended[self._params.beam_width - 1])

    def num_wanted(self, path: Path) -> int:
        """How many of the likeliest tokens decide a step: those that repetition_penalty lowers may have to give way."""
        lowered = len(set(path.ids)) if self._params.repetition_penalty != 1 else 0
        return 2 * self._params.beam_width + lowered

    def advance(self, ranked: Sequence[Ranked]) -> None:
        """Lengthen the live paths. ranked: for each of them the likeliest next tokens."""
        best = self._chosen(ranked)
        self._ended += [path for path in best[: self._params.beam_width] if path.ids[-1] in self._ends]
        self._ended.sort(key=self._score, reverse=True)
        self.live = [path for path in best if path.ids[-1] not in self._ends][: self._params.beam_width]

    def best(self) -> list[tuple[Path, float, bool]]:
        """The beam_width best: path, score, whether it ended by itself."""
        found = [(path, self._score(path), True) for path in self._ended]
        found += [(path, self._score(path), False) for path in self.live]
        found.sort(key=lambda item: item[1], reverse=True)
        return found[: self._params.beam_width]

    def _chosen(self, ranked: Sequence[Ranked]) -> list[Path]:
        """Candidates for the next beams, the likeliest first."""
        found = [
            Path((*path.ids, token), path.logprob + own)
            for path, tokens in zip(self.live, ranked, strict=True)
            for token, own in self._penalized(path, tokens)
        ]
        found.sort(key=lambda path: path.logprob, reverse=True)
        return found[: 2 * self._params.beam_width]

    def _penalized(self, path: Path, tokens: Ranked) -> list[tuple[int, float]]:
        """Tokens with their log-probabilities after the repetition penalty."""
        seen, penalty = set(path.ids), self._params.repetition_penalty
        return [(token, logprob * penalty if token in seen else logprob) for token, logprob in tokens]

    def _score(self, path: Path) -> float:
        return path.logprob / max(len(path.ids), 1) ** self._params.length_penalty


class _Search:
    """A search for one prompt through one client: what the two drivers below share."""

    def __init__(
        self,
        client: EngineClient,
        prompt: Prompt,
        params: BeamSearchParams,
        options: dict[str, object],
        make: Callable[[BeamSearchParams, int, frozenset[int]], BeamSearch] = BeamSearch,
    ) -> None:
        if params.temperature not in (0, 1):
            reason = f"temperature: beams are ranked by the model's own probabilities; {params.temperature} must be 0"
            raise UnsupportedError(reason, param="temperature")
        if client.config.logprobs_mode.endswith("logits"):
            raise UnsupportedError("beam search needs logprobs_mode=raw_logprobs", param="use_beam_search")
        self._client = client
        self._prompt = prompt
        self._params = params
        self._options = options
        room = max(client.max_model_len - len(prompt.ids), 1)
        self.search = make(params, min(params.max_tokens, room), frozenset(client.tokenizer.eos_ids))

    def submit(self) -> list[Stream]:
        """One request of one token for every live beam."""
        streams: list[Stream] = []
        try:
            for path in self.search.live:
                wanted = min(self.search.num_wanted(path), self._client.facts.vocab_size)
                sampling = SamplingParams(
                    temperature=0.0, max_tokens=1, logprobs=wanted, ignore_eos=True, detokenize=False
                )
                prompt = replace(self._prompt, ids=(*self._prompt.ids, *path.ids), text=None)
                streams.append(self._client.submit(prompt, sampling, limit_logprobs=False, **self._options))  # type: ignore[arg-type]
        except BaseException:
            for stream in streams:
                stream.abort()
            raise
        return streams

    def results(self) -> list[Beam]:
        beams: list[Beam] = []
        for path, score, ended in self.search.best():
            ids = path.ids if not ended or self._params.include_stop_str_in_output else path.ids[:-1]
            text = self._client.tokenizer.decode(ids)
            beams.append(Beam(ids, path.logprob, score, text, "stop" if ended else "length"))
        return beams


def beam_search(
    client: EngineClient,
    prompt: Prompt,
    params: BeamSearchParams,
    *,
    make: Callable[[BeamSearchParams, int, frozenset[int]], BeamSearch] = BeamSearch,
    **options: object,
) -> list[Beam]:
    """The beam_width best continuations, the best first. options: as submit() takes them (namespace, priority).

    make: another search, from what BeamSearch is made of. Raises what submit() raises, and SensoriumError where the
    engine fails on the way.
    """
    run = _Search(client, prompt, params, options, make)
    while not run.search.is_over:
        streams = run.submit()
        try:
            run.search.advance([_ranked(list(stream)) for stream in streams])
        finally:
            for stream in streams:
                stream.abort()
    return run.results()


async def abeam_search(client: EngineClient, prompt: Prompt, params: BeamSearchParams, **options: object) -> list[Beam]:
    """As beam_search, in an event loop."""
    run = _Search(client, prompt, params, options)
    while not run.search.is_over:
        streams = run.submit()
        try:
            ranked: list[Ranked] = []
            for stream in streams:
                events = [event async for event in stream]
                ranked.append(_ranked(events))
            run.search.advance(ranked)
        finally:
            for stream in streams:
                stream.abort()
    return run.results()


def _ranked(events: list[Event]) -> Ranked:
    for event in events:
        if isinstance(event, TextDelta) and event.logprobs:
            return event.logprobs[0].top
        if isinstance(event, Failed):
            error = SensoriumError(event.message, param=event.param)
            error.code, error.status = event.code, event.status
            raise error
    raise SensoriumError("a step of the beam search was cut off")
