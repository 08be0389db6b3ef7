"""Chat messages as callers in Python write them: OpenAI's form, and parts that hold live objects."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sensorium.errors import MediaError, RequestError, UnsupportedError
from sensorium.live_media import Item, read_embeds, read_media
from sensorium.types import Embeds, MediaRef, Message, Modality, Role

log = logging.getLogger(__name__)
Loading = Mapping[str, Mapping[str, Any]]
"""media_io_kwargs: by modality, how live pictures are read."""

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text", "refusal", "thinking")
URL_PARTS: dict[str, Modality] = {
    "image_url": "image",
    "input_image": "image",
    "audio_url": "audio",
    "video_url": "video",
}
OBJECT_PARTS: dict[str, Modality] = {"image_pil": "image", "image": "image", "audio": "audio", "video": "video"}
EMBEDS_PARTS: dict[str, Modality] = {"image_embeds": "image", "audio_embeds": "audio", "video_embeds": "video"}
MEDIA_PARTS: dict[str, Modality] = {**URL_PARTS, "input_audio": "audio", **OBJECT_PARTS, **EMBEDS_PARTS}
PARTS = (*TEXT_PARTS, *MEDIA_PARTS)


def read_messages(messages: Sequence[Mapping[str, Any]], loading: Loading | None = None) -> list[Message]:
    """Parts are strings or dicts {"type": ..., that type: ...}; docs/offline.md lists the types."""
    if isinstance(messages, Mapping) or not all(isinstance(message, Mapping) for message in messages):
        raise RequestError("messages must be a list of dicts with role and content", param="messages")
    return [_message(message, f"messages[{index}]", loading or {}) for index, message in enumerate(messages)]


def read_content(content: Any, where: str, loading: Loading | None = None) -> tuple[str | Item, ...]:
    """The parts of one message: a string, a part, or a list of both."""
    if isinstance(content, str):
        return (content,)
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence):
        raise RequestError(f"{where} must be a string or a list of parts", param=where)
    return tuple(item for i, part in enumerate(content) for item in _part(part, f"{where}[{i}]", loading or {}))


def _message(message: Mapping[str, Any], where: str, loading: Loading) -> Message:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where}.role is {role!r}; use one of {', '.join(ROLES)}", param=f"{where}.role")
    extra = {key: value for key, value in message.items() if key not in ("role", "content")}
    if content is None and role == "assistant":
        content = ""
    return Message(ROLES[role], read_content(content, f"{where}.content", loading), extra)


def _part(part: Any, where: str, loading: Loading) -> list[str | Item]:
    """What one part stands for: one item, or none where its text is missing."""
    if isinstance(part, str):
        return [part]
    kind = _kind(part, where)
    content = part.get(kind)
    if kind in TEXT_PARTS:
        if content is None:
            log.warning("%s has no %s and is left out", where, kind)
            return []
        if not isinstance(content, str):
            raise RequestError(f"{where}.{kind} must be a string", param=f"{where}.{kind}")
        return [content]
    modality, where = MEDIA_PARTS[kind], f"{where}.{kind}"
    uuid = part.get("uuid")
    url = content.get("url") if kind in URL_PARTS and isinstance(content, Mapping) else content
    if url is None and (content is None or uuid is not None):
        return [read_media(modality, None, where, uuid)]
    if kind in URL_PARTS:
        return [_url(modality, url, where, uuid)]
    if kind == "input_audio":
        return [_input_audio(content, where, uuid)]
    if kind in EMBEDS_PARTS:
        return [_embeds(modality, content, where, uuid)]
    return [read_media(modality, content, where, uuid, loading.get(modality))]


def _kind(part: Any, where: str) -> str:
    """The type of a part; one that names none is known by its key."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind is None:
        kind = next((name for name in PARTS if name in part), None)
    if kind == "prompt_embeds":
        raise UnsupportedError(f"{where}: prompt_embeds is not supported; write text", param=where)
    if not isinstance(kind, str) or kind not in PARTS:
        raise RequestError(f"{where} has type {kind!r}; use one of {', '.join(PARTS)}", param=where)
    if unknown := [name for name in part if name not in ("type", "uuid", "detail", kind)]:
        raise RequestError(f"{where} has {unknown[0]!r}, which does nothing for {kind}", param=f"{where}.{unknown[0]}")
    return kind


def _url(modality: Modality, url: Any, where: str, uuid: Any) -> MediaRef:
    if not isinstance(url, str):
        raise RequestError(f"{where} has no url", param=where)
    return MediaRef(modality, url, where, uuid=None if uuid is None else str(uuid))


def _input_audio(content: Any, where: str, uuid: Any) -> MediaRef:
    """Bytes in base64. The format they are said to have is a hint: the bytes decide."""
    try:
        data = base64.b64decode(content["data"], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError) as error:
        raise MediaError(f"{where}.data is not base64", param=where) from error
    options = {"format": content["format"]} if content.get("format") is not None else {}
    return MediaRef("audio", data, where, options, None if uuid is None else str(uuid))


def _embeds(modality: Modality, content: Any, where: str, uuid: Any) -> MediaRef | Embeds:
    """A tensor or a dict of tensors; or files of them, as base64 text or bytes, which are read where media are."""
    values = list(content.values()) if isinstance(content, Mapping) else [content]
    if any(isinstance(value, str | bytes) for value in values):
        return MediaRef(modality, content, where, uuid=None if uuid is None else str(uuid), form="embeds")
    (*others, item) = read_embeds(modality, content, where)
    if others:
        raise RequestError(f"{where} holds embeddings of {len(others) + 1} items; a part holds one", param=where)
    return replace(item, uuid=None if uuid is None else str(uuid))
