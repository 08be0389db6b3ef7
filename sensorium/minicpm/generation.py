"""How chat() chooses tokens: the published defaults, and one engine call for each kind of search."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sensorium.engine.beam import BeamSearch, beam_search
from sensorium.engine.beam_sampling import BeamSampling
from sensorium.engine.client import EngineClient
from sensorium.errors import EngineError, UnsupportedError
from sensorium.offline import batch
from sensorium.offline.batch import Job
from sensorium.offline.progress import Bars
from sensorium.outputs import RequestOutput
from sensorium.types import BeamSearchParams, Failed, Prompt, SamplingParams, TextDelta

log = logging.getLogger(__name__)
_ids = itertools.count()

SETTINGS = ("num_beams", "top_p", "top_k", "temperature", "repetition_penalty")
"""What chat() takes by keyword beside its own parameters."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One way to choose tokens. A penalty counts generated tokens only, as in the reference."""

    do_sample: bool
    max_new_tokens: int
    min_new_tokens: int
    num_beams: int = 1
    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 100
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.num_beams > 1 and self.min_new_tokens:
            raise UnsupportedError("min_new_tokens: not together with beams; pass num_beams=1", param="min_new_tokens")

    def sampling(self, seed: int, stop_ids: Sequence[int]) -> SamplingParams:
        """stop_ids: besides those that end every answer."""
        return SamplingParams(
            temperature=self.temperature if self.do_sample else 0.0,
            top_p=self.top_p if self.do_sample else 1.0,
            top_k=self.top_k if self.do_sample else 0,
            repetition_penalty=self.repetition_penalty,
            penalize_prompt=False,
            max_tokens=self.max_new_tokens,
            min_tokens=self.min_new_tokens,
            stop_token_ids=tuple(stop_ids),
            seed=seed,
            skip_special_tokens=False,
        )


def omni_generation(do_sample: bool, stream: bool, given: Mapping[str, Any], lengths: tuple[int, int]) -> Generation:
    """MiniCPM-o 4.5: three beams unless told otherwise, drawn or not; streams have one. lengths: most, least."""
    settings = _known(given, SETTINGS)
    beams = 1 if stream else int(settings.pop("num_beams", 3))
    settings.pop("num_beams", None)
    penalty = settings.pop("repetition_penalty", 1.02 if do_sample or beams == 1 else 1.2)
    if not do_sample:
        settings = _idle(settings, "do_sample=False")
    return Generation(do_sample, *lengths, num_beams=beams, repetition_penalty=penalty, **settings)


def vision_generation(
    sampling: bool, version: tuple[int, ...], given: Mapping[str, Any], lengths: tuple[int, int]
) -> Generation:
    """MiniCPM-V and o-2.6: sampling with one beam, or three beams without sampling."""
    settings = _known(given, (*SETTINGS, "do_sample"))
    if not sampling:
        beams, penalty = int(settings.pop("num_beams", 3)), settings.pop("repetition_penalty", 1.2)
        _idle(settings, "sampling=False")
        return Generation(False, *lengths, num_beams=beams, repetition_penalty=penalty)
    if "num_beams" in settings:
        _idle({"num_beams": settings.pop("num_beams")}, "sampling=True")
    settings.setdefault("repetition_penalty", 1.03 if version >= (4, 5) else 1.05)
    do_sample = bool(settings.pop("do_sample", True))
    return Generation(do_sample, *lengths, **settings)


def _known(given: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    if unknown := [name for name in given if name not in known]:
        raise TypeError(f"chat() got an unexpected keyword argument {unknown[0]!r}; it also takes {', '.join(known)}")
    return {name: value for name, value in given.items() if value is not None}


def _idle(settings: Mapping[str, Any], beside: str) -> dict[str, Any]:
    """Nothing of these: as in the reference they do nothing here, which callers are told."""
    if settings:
        log.warning("chat(): %s has no effect with %s", ", ".join(settings), beside)
    return {}


def draw_seed() -> int:
    """From torch's own generator, so that torch.manual_seed makes answers repeatable."""
    return int(torch.randint(0, 1 << 62, (1,)).item())


@dataclass(frozen=True, slots=True)
class Answer:
    """ids: of the generated tokens, without one that ends the text."""

    prompt: Prompt
    ids: tuple[int, ...]


def answer_all(
    client: EngineClient, prepare: Sequence[Callable[[], Prompt]], how: Generation, stop_ids: Sequence[int]
) -> list[Answer]:
    """Answers in the order of the prompts; those that need no beams share the engine's steps."""
    seed = draw_seed()
    if how.num_beams > 1:
        return [_searched(client, make(), how, seed + number) for number, make in enumerate(prepare)]
    prompts: dict[int, Prompt] = {}

    def kept(number: int) -> tuple[Prompt, str]:
        prompts[number] = prepare[number]()
        return prompts[number], ""

    jobs = [
        Job(f"chat-{next(_ids)}", functools.partial(kept, number), how.sampling(seed + number, stop_ids))
        for number in range(len(prepare))
    ]
    outputs = batch.run(client, jobs, Bars(False, len(jobs)))
    ends = {*client.tokenizer.eos_ids, *stop_ids}
    found: list[Answer] = []
    for number, output in enumerate(outputs):
        assert isinstance(output, RequestOutput)
        ids = output.outputs[0].token_ids
        found.append(Answer(prompts[number], tuple(ids[:-1] if ids and ids[-1] in ends else ids)))
    return found


def _searched(client: EngineClient, prompt: Prompt, how: Generation, seed: int) -> Answer:
    make: Callable[[BeamSearchParams, int, frozenset[int]], BeamSearch] = BeamSearch
    if how.do_sample:
        make = functools.partial(BeamSampling, sampling=how.sampling(seed, ()))
    params = BeamSearchParams(
        beam_width=how.num_beams, max_tokens=how.max_new_tokens, repetition_penalty=how.repetition_penalty
    )
    return Answer(prompt, beam_search(client, prompt, params, make=make)[0].token_ids)


def stream_text(client: EngineClient, prompt: Prompt, how: Generation, stop_ids: Sequence[int]) -> Iterator[str]:
    """Pieces of the text as they come. The request is queued now; closing the iterator ends it."""
    stream = client.submit(prompt, how.sampling(draw_seed(), stop_ids))

    def pieces() -> Iterator[str]:
        try:
            for event in stream:
                if isinstance(event, TextDelta) and event.text:
                    yield event.text
                elif isinstance(event, Failed):
                    raise EngineError(event.message, param=event.param)
        finally:
            stream.abort()

    return pieces()
