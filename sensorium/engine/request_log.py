"""Requests in the log: what was asked for in one line, and where the operator wants it, what was answered."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from sensorium.types import Event, Failed, Finished, Request, SamplingParams, TextDelta

log = logging.getLogger(__name__)

# What these hold, users wrote: shown as how much of it there is.
_WRITTEN = {"stop", "bad_words", "structured_outputs", "logit_bias", "stop_token_ids", "allowed_token_ids"}
_WRITTEN |= {"logprob_token_ids"}


def describe(request: Request) -> str:
    """The parameters that are not the defaults, the length of the prompt, and its media by kind and size."""
    defaults = SamplingParams()
    params = ", ".join(
        f"{field.name}={_shown(field.name, getattr(request.sampling, field.name))}"
        for field in fields(SamplingParams)
        if getattr(request.sampling, field.name) != getattr(defaults, field.name)
    )
    media = ", ".join(f"{item.modality} of {item.rows} tokens" for item in request.prompt.media)
    text = f"params: {request.pooling if request.pooling is not None else f'SamplingParams({params})'}"
    return f"{text}, prompt: {len(request.prompt.ids)} tokens, media: {media or 'none'}"


def _shown(name: str, value: Any) -> Any:
    if name not in _WRITTEN:
        return value
    return f"<{len(value)}>" if hasattr(value, "__len__") else "<given>"


@dataclass(slots=True)
class _Said:
    text: str = ""
    ids: list[int] = field(default_factory=list[int])


class OutputLog:
    """Logs answers when they are whole. most: characters of the text, and ids, that are shown."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._said: dict[str, _Said] = {}

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, TextDelta):
                said = self._said.setdefault(event.request_id, _Said())
                said.text += event.text
                said.ids += event.token_ids
            elif isinstance(event, Finished | Failed):
                said = self._said.pop(event.request_id, _Said())
                reason = event.reason if isinstance(event, Finished) else event.code
                text, ids = said.text[: self._most], said.ids[: self._most]
                log.info(
                    "Generated response %s: output: %r, output_token_ids: %s, finish_reason: %s",
                    *(event.request_id, text, ids, reason),
                )
