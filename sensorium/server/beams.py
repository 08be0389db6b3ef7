"""Beam search for requests: n is the number of beams, and the answers are the best of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sensorium.engine.beam import abeam_search
from sensorium.errors import RequestError
from sensorium.params import BeamSearchParams
from sensorium.server.generation import Codec, Origin, Tally
from sensorium.types import Finished, Prompt, TextDelta, Timings, Usage

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient
    from sensorium.server.chat_schema import ChatRequest
    from sensorium.server.completions import CompletionRequest

_NOT_WITH = (
    "stream", "logprobs", "prompt_logprobs", "response_format", "structured_outputs", "tools", "stop", "stop_token_ids",
    "bad_words", "allowed_token_ids", "logit_bias", "min_tokens", "thinking_token_budget", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "top_k", "top_p", "min_p", "seed",
    "presence_penalty", "frequency_penalty",
)  # fmt: skip


def check_beams(request: ChatRequest | CompletionRequest) -> None:
    """A beam search takes the likeliest texts, so nothing that chooses tokens otherwise has a meaning in it."""
    for name in _NOT_WITH:
        if getattr(request, name, None) not in (None, False, [], 0):
            raise RequestError(f"{name}: not with use_beam_search", param=name)


async def search_beams(
    client: EngineClient,
    request: ChatRequest | CompletionRequest,
    origin: Origin,
    prompt: Prompt,
    tallies: Sequence[Tally],
    codec: Codec,
    first: int = 0,
    longest: int | None = None,
) -> None:
    """Give the best beams for a prompt to the codec, as jobs number `first` and following.

    longest: most tokens of an answer; None is what the context leaves.
    """
    room = client.max_model_len - len(prompt.ids)
    count = request.n or 1
    params = BeamSearchParams(
        beam_width=count,
        max_tokens=max(min(longest or room, room), 1),
        ignore_eos=bool(request.ignore_eos),
        temperature=request.temperature or 0.0,
        length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        repetition_penalty=request.repetition_penalty or 1.0,
    )
    start = time.monotonic()
    found = await abeam_search(client, prompt, params, namespace=origin.namespace, priority=origin.priority)
    seconds = time.monotonic() - start
    for number, beam in enumerate(found[:count], first):
        usage = Usage(len(prompt.ids), len(beam.token_ids), media_tokens=prompt.media_tokens())
        tally = tallies[number]
        tally.tokens = len(beam.token_ids)
        tally.finished = Finished(origin.id, beam.finish_reason, usage, Timings(0.0, None, seconds))
        codec.take(number, TextDelta(origin.id, beam.text, beam.token_ids))
        codec.take(number, tally.finished)
    facts = origin.facts
    facts["prompt_tokens"] = facts.get("prompt_tokens", 0) + len(prompt.ids)
    facts["completion_tokens"] = facts.get("completion_tokens", 0) + sum(len(beam.token_ids) for beam in found)
    facts["finish"] = ",".join([*facts.get("finish", "").split(), *(beam.finish_reason for beam in found)])
