"""Raw prompts as callers write them: text, token ids, or a dict with media."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sensorium.errors import RequestError, UnsupportedError
from sensorium.live_media import MODALITIES, Item, read_items
from sensorium.types import ChatOptions

PROMPT_KEYS = (
    "prompt",
    "prompt_token_ids",
    "multi_modal_data",
    "multi_modal_uuids",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "cache_salt",
)
_UNSUPPORTED = {
    "prompt_embeds": "give the text or the token ids; media can come as embeddings in multi_modal_data",
    "encoder_prompt": "no model with an encoder of its own is supported yet",
    "decoder_prompt": "no model with an encoder of its own is supported yet",
}


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt taken apart: what Processor.raw reads, and whose caches it may share."""

    text: str | Sequence[int]
    media: list[Item] = field(default_factory=list[Item])
    options: ChatOptions = field(default_factory=ChatOptions)


def is_one_prompt(value: Any) -> bool:
    """Whether a value is a prompt and not a list of them."""
    return isinstance(value, str | Mapping) or (bool(value) and type(value[0]) is int)


def read_prompt(prompt: Any, media_kwargs: Mapping[str, Any], io_kwargs: Mapping[str, Mapping[str, Any]]) -> RawPrompt:
    """One prompt in any of its forms. media_kwargs, io_kwargs: defaults that the prompt's own are merged over."""
    if not isinstance(prompt, Mapping):
        if not isinstance(prompt, str | Sequence):
            raise RequestError(
                f"a prompt is a string, a list of token ids or a dict, not {type(prompt).__name__}", param="prompt"
            )
        return RawPrompt(prompt, options=ChatOptions(media_kwargs=media_kwargs))
    for name in prompt:
        if prompt[name] is not None and name in _UNSUPPORTED:
            raise UnsupportedError(f"{name}: not supported; {_UNSUPPORTED[name]}", param=name)
        if name not in PROMPT_KEYS and name not in _UNSUPPORTED:
            raise RequestError(f"a prompt has no {name!r}; known: {', '.join(PROMPT_KEYS)}", param=str(name))
    ids = prompt.get("prompt_token_ids")
    text = prompt.get("prompt") if ids is None else ids
    if text is None:
        raise RequestError("a prompt needs 'prompt' or 'prompt_token_ids'", param="prompt")
    own = _mapping(prompt, "mm_processor_kwargs")
    asked = _mapping(prompt, "media_io_kwargs")
    options = ChatOptions(
        media_kwargs={**media_kwargs, **own}, media_io_kwargs=asked, namespace=_salt(prompt.get("cache_salt"))
    )
    loading = {name: {**io_kwargs.get(name, {}), **asked.get(name, {})} for name in {**io_kwargs, **asked}}
    media = read_media_data(_mapping(prompt, "multi_modal_data"), prompt.get("multi_modal_uuids"), loading)
    return RawPrompt(text, media, options)


def read_media_data(
    data: Mapping[str, Any], uuids: Mapping[str, Any] | None, loading: Mapping[str, Mapping[str, Any]]
) -> list[Item]:
    """multi_modal_data as media, images first, then audio, then video: placeholders are counted per modality."""
    for name in [*data, *(uuids or {})]:
        if name not in MODALITIES:
            hint = f"write {name[:-1]!r}" if str(name).rstrip("s") in MODALITIES else f"use {', '.join(MODALITIES)}"
            raise RequestError(f"multi_modal_data has no {name!r}; {hint}", param=str(name))
    if uuids is not None:
        _check_uuids(data, uuids)
    found: list[Item] = []
    for modality in MODALITIES:
        named = (uuids or {}).get(modality)
        value = data.get(modality)
        if modality not in data or (value is None and named is None) or _is_empty(value):
            continue
        found += read_items(modality, value, named, f"multi_modal_data.{modality}", loading.get(modality))
    return found


def _check_uuids(data: Mapping[str, Any], uuids: Mapping[str, Any]) -> None:
    for name in uuids:
        if name not in data:
            raise RequestError(f"multi_modal_uuids has {name!r}, multi_modal_data has not", param="multi_modal_uuids")
    for name, value in data.items():
        if name in uuids or _is_empty(value):
            continue
        missing = f"multi_modal_uuids[{name!r}] is missing"
        nothing = value is None or (isinstance(value, list) and all(item is None for item in value))
        reason = f"multi_modal_data[{name!r}] is empty but " if nothing else ""
        raise RequestError(f"{reason}{missing}; name every modality that has media", param="multi_modal_uuids")


def _is_empty(value: Any) -> bool:
    """A list without media; a video without frames is left to be refused."""
    return isinstance(value, list | tuple) and len(value) == 0


def _mapping(prompt: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = prompt.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise RequestError(f"{name} must be a dict, not {type(value).__name__}", param=name)
    return value or {}


def _salt(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not value or len(value) > 128:
        raise RequestError("cache_salt must be a string of 1 to 128 characters", param="cache_salt")
    return value
