"""The part of chat() that all versions share: from conversations to prompts, and from tokens to answers."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sensorium.errors import ContextLengthError, RequestError
from sensorium.minicpm.generation import Answer, Generation, answer_all, stream_text
from sensorium.minicpm.given_rows import rows_of_each, with_rows
from sensorium.minicpm.model import MiniCPM
from sensorium.types import ChatOptions, Message, Prompt, Span

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What chat() was asked. media: see models.minicpm_pieces.Settings; temporal_ids as chat() takes them.

    is_batch: whether a list of conversations was asked.
    """

    conversations: Sequence[Sequence[Message]]
    is_batch: bool
    how: Generation
    max_inp_length: int
    template: dict[str, Any] = field(default_factory=dict[str, Any])
    media: dict[str, Any] = field(default_factory=dict[str, Any])
    temporal_ids: Any = None
    system_prompt: str = ""
    stop_ids: tuple[int, ...] = ()
    vision_hidden_states: Any = None


def ask(model: MiniCPM, question: Question) -> list[Answer]:
    """Wait for whole answers, one for each conversation."""
    return answer_all(model.client, prompts(model, question), question.how, question.stop_ids)


def ask_stream(model: MiniCPM, question: Question, before: str = "") -> Iterator[str]:
    """The answer in pieces, behind the text `before`."""
    if question.is_batch:
        raise RequestError("stream: one conversation can be streamed, not a list of them", param="stream")
    (prepare,) = prompts(model, question)
    pieces = stream_text(model.client, prepare(), question.how, question.stop_ids)
    return itertools.chain([before], pieces) if before else pieces


def prompts(model: MiniCPM, question: Question) -> list[Callable[[], Prompt]]:
    """What makes the prompt of each conversation."""
    times, count = question.temporal_ids, len(question.conversations)
    each = list(times) if question.is_batch and times is not None else [times] * count
    if len(each) != count:
        raise RequestError(
            f"temporal_ids: {len(each)} for {count} conversations; give a list for each", param="temporal_ids"
        )
    opening = [Message("system", (question.system_prompt,))] if question.system_prompt else []
    rows = rows_of_each(question.vision_hidden_states, question.is_batch, count)
    return [
        functools.partial(_prompt, model, [*opening, *own], question, *its)
        for own, *its in zip(question.conversations, each, rows, strict=True)
    ]


def _prompt(
    model: MiniCPM, messages: Sequence[Message], question: Question, times: Any, rows: np.ndarray | None
) -> Prompt:
    media = {name: value for name, value in question.media.items() if value is not None}
    if times is not None:
        media["temporal_ids"] = _whole_numbers(times)
    options = ChatOptions(template_kwargs=question.template, media_kwargs=media)
    return _cut(with_rows(model.client.prepare_chat(messages, options), rows), question.max_inp_length)


def _whole_numbers(groups: Any) -> list[list[int]]:
    """Groups may be lists or arrays, as numpy's slices are."""
    try:
        found = [[int(time) for time in group] for group in groups]
    except (TypeError, ValueError) as error:
        raise RequestError("temporal_ids: give a list of groups of whole numbers", param="temporal_ids") from error
    return found


def _cut(prompt: Prompt, most: int) -> Prompt:
    """At most so many ids, the first ones. Media are kept or left out whole."""
    if len(prompt.ids) <= most:
        return prompt
    if cut := next((span for span in prompt.spans if span.start < most < span.stop), None):
        raise ContextLengthError(
            f"max_inp_length: {most} of {len(prompt.ids)} prompt tokens end inside a medium (tokens {cut.start} to "
            f"{cut.stop}); raise it, or lower max_slice_nums",
            param="max_inp_length",
        )
    log.warning("the prompt has %d tokens and is cut to the first %d (max_inp_length)", len(prompt.ids), most)
    spans: list[Span] = [span for span in prompt.spans if span.stop <= most]
    used = {span.media: place for place, span in reversed(list(enumerate(spans)))}
    order = sorted(used, key=lambda media: used[media])
    media = tuple(prompt.media[number] for number in order)
    spans = [replace(span, media=order.index(span.media)) for span in spans]
    return replace(prompt, ids=prompt.ids[:most], spans=tuple(spans), media=media)
