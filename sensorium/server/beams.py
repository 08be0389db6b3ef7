"""Beam search for chat requests: n is the number of beams, and the answers are the best of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sensorium.engine.beam import abeam_search
from sensorium.errors import RequestError
from sensorium.params import BeamSearchParams
from sensorium.server.chat_schema import ChatRequest
from sensorium.server.generation import Codec, Origin, Tally
from sensorium.types import Finished, Prompt, TextDelta, Timings, Usage

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

_NOT_WITH = (
    "stream", "logprobs", "prompt_logprobs", "response_format", "structured_outputs", "tools", "stop", "stop_token_ids",
    "bad_words", "allowed_token_ids", "logit_bias", "min_tokens", "thinking_token_budget", "guided_json",
    "guided_regex", "guided_choice", "guided_grammar", "top_k", "top_p", "min_p", "seed",
    "presence_penalty", "frequency_penalty",
)  # fmt: skip


def check_beams(request: ChatRequest) -> None:
    """A beam search takes the likeliest texts, so nothing that chooses tokens otherwise has a meaning in it."""
    for name in _NOT_WITH:
        if getattr(request, name) not in (None, False, [], 0):
            raise RequestError(f"{name}: not with use_beam_search", param=name)


async def search_beams(
    client: EngineClient,
    request: ChatRequest,
    origin: Origin,
    prompt: Prompt,
    tallies: Sequence[Tally],
    codec: Codec,
) -> None:
    """Give the best beams to the codec, one for each tally."""
    room = client.max_model_len - len(prompt.ids)
    params = BeamSearchParams(
        beam_width=len(tallies),
        max_tokens=max(min(request.max_completion_tokens or request.max_tokens or room, room), 1),
        ignore_eos=bool(request.ignore_eos),
        temperature=request.temperature or 0.0,
        length_penalty=1.0 if request.length_penalty is None else request.length_penalty,
        include_stop_str_in_output=bool(request.include_stop_str_in_output),
        repetition_penalty=request.repetition_penalty or 1.0,
    )
    start = time.monotonic()
    found = await abeam_search(client, prompt, params, namespace=origin.namespace, priority=origin.priority)
    seconds = time.monotonic() - start
    for number, (beam, tally) in enumerate(zip(found, tallies, strict=False)):
        usage = Usage(len(prompt.ids), len(beam.token_ids), media_tokens=prompt.media_tokens())
        tally.tokens = len(beam.token_ids)
        tally.finished = Finished(origin.id, beam.finish_reason, usage, Timings(0.0, None, seconds))
        codec.take(number, TextDelta(origin.id, beam.text, beam.token_ids))
        codec.take(number, tally.finished)
    origin.facts.update(
        prompt_tokens=len(prompt.ids),
        completion_tokens=sum(tally.tokens for tally in tallies),
        finish=",".join(beam.finish_reason for beam in found),
    )
