"""A request in one line of the log: what was asked for, never what was said."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sensorium.types import Request, SamplingParams

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
