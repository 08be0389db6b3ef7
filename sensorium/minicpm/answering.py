"""The part of chat() that all versions share: from conversations to prompts, and from tokens to answers."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sensorium.errors import ContextLengthError, RequestError
from sensorium.minicpm.generation import Answer, Generation, answer_all, stream_text
from sensorium.minicpm.messages import read_conversations
from sensorium.minicpm.model import MiniCPM
from sensorium.types import ChatOptions, Message, Prompt, Span

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What chat() was asked. media: see models.minicpm_pieces.Settings; temporal_ids as chat() takes them."""

    msgs: Any
    image: Any
    roles: Sequence[str]
    how: Generation
    max_inp_length: int
    template: dict[str, Any] = field(default_factory=dict[str, Any])
    media: dict[str, Any] = field(default_factory=dict[str, Any])
    temporal_ids: Any = None
    system_prompt: str = ""
    add_generation_prompt: bool = True
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """of: one for each conversation. is_batch: whether a list of conversations was asked."""

    of: list[Answer]
    is_batch: bool


def ask(model: MiniCPM, question: Question) -> Answers:
    """Wait for whole answers."""
    prepare, is_batch = _prompts(model, question)
    return Answers(answer_all(model.client, prepare, question.how, question.stop_ids), is_batch)


def ask_stream(model: MiniCPM, question: Question, before: str = "") -> Iterator[str]:
    """The answer in pieces, behind the text `before`."""
    prepare, is_batch = _prompts(model, question)
    if is_batch:
        raise RequestError("stream: one conversation can be streamed, not a list of them", param="stream")
    pieces = stream_text(model.client, prepare[0](), question.how, question.stop_ids)
    return itertools.chain([before], pieces) if before else pieces


def _prompts(model: MiniCPM, question: Question) -> tuple[list[Callable[[], Prompt]], bool]:
    limits = model.checkpoint.engine.limits
    conversations, is_batch = read_conversations(question.msgs, question.image, question.roles, limits)
    times = question.temporal_ids
    each = list(times) if is_batch and times is not None else [times] * len(conversations)
    if len(each) != len(conversations):
        raise RequestError(
            f"temporal_ids: {len(each)} for {len(conversations)} conversations; give a list for each",
            param="temporal_ids",
        )
    opening = [Message("system", (question.system_prompt,))] if question.system_prompt else []
    return [
        functools.partial(_prompt, model, [*opening, *own], question, groups)
        for own, groups in zip(conversations, each, strict=True)
    ], is_batch


def _prompt(model: MiniCPM, messages: Sequence[Message], question: Question, times: Any) -> Prompt:
    media = {name: value for name, value in question.media.items() if value is not None}
    if times is not None:
        media["temporal_ids"] = _whole_numbers(times)
    options = ChatOptions(
        add_generation_prompt=question.add_generation_prompt, template_kwargs=question.template, media_kwargs=media
    )
    return _cut(model.client.prepare_chat(messages, options), question.max_inp_length)


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
