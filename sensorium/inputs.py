"""The forms in which LLM takes prompts. Names follow vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

ModalityData = Any
"""One medium, or a list of several; see docs/offline.md for the forms."""


class MultiModalDataDict(TypedDict, total=False):
    """Media by modality. A prompt has one placeholder for each, in the order of each list."""

    image: ModalityData
    video: ModalityData
    audio: ModalityData


class MultiModalUUIDDict(TypedDict, total=False):
    """Your own stable ids of the media: one, or a list with as many entries as there are media."""

    image: str | Sequence[str | None] | None
    video: str | Sequence[str | None] | None
    audio: str | Sequence[str | None] | None


class _Extras(TypedDict, total=False):
    multi_modal_data: MultiModalDataDict | None
    multi_modal_uuids: MultiModalUUIDDict | None
    mm_processor_kwargs: Mapping[str, Any] | None
    media_io_kwargs: Mapping[str, Mapping[str, Any]] | None
    cache_salt: str | None


class TextPrompt(_Extras):
    """Text in the model's own notation."""

    prompt: str


class TokensPrompt(_Extras):
    prompt_token_ids: Sequence[int]


PromptType = str | Sequence[int] | TextPrompt | TokensPrompt
