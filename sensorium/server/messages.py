"""Messages as clients of the OpenAI API and of vLLM write them, read into the engine's types.

Every error names the place, such as messages[1].content[0].image_url. Contents are never repeated in errors.
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from sensorium.errors import RequestError
from sensorium.inline import behind
from sensorium.types import MediaRef, Message, Modality

log = logging.getLogger(__name__)

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "thinking": "thinking", "refusal": "refusal"}
"""Part type -> the key of its text."""
URL_PARTS: dict[str, Modality] = {
    "image_url": "image",
    "input_image": "image",
    "video_url": "video",
    "audio_url": "audio",
    "image": "image",
    "video": "video",
    "audio": "audio",
    "image_pil": "image",
}
EMBEDS_PARTS: dict[str, Modality] = {"image_embeds": "image", "video_embeds": "video", "audio_embeds": "audio"}
PART_TYPES = (*TEXT_PARTS, *URL_PARTS, "input_audio", *EMBEDS_PARTS)
_MESSAGE_KEYS = (
    "role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content", "refusal", "annotations",
    "audio", "function_call",
    "provider_specific_fields",  # LiteLLM's notes on an answer, sent back with it
)  # fmt: skip
_PART_KEYS = ("type", "uuid", "cache_control", "annotations", "detail", "format")
MAX_PARTS, MAX_UUID, MAX_CALLS = 2048, 2048, 256
_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_LABEL = re.compile(r"[^\s<|\\/>\x00-\x1f\x7f]{1,128}")


@dataclass(frozen=True, slots=True)
class Reading:
    """How a request's messages are read. media_options: modality -> how its media are to be loaded."""

    media_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    allow_unknown: bool = False
    recall: Callable[[str], str | None] = lambda ident: None
    """The transcript of a spoken answer by its id; None for one that is not known any more."""


def read_messages(messages: Sequence[Mapping[str, Any]], reading: Reading) -> list[Message]:
    """The conversation, its media as references that carry their place for error messages."""
    return [_message(message, f"messages[{number}]", reading) for number, message in enumerate(messages)]


def _message(message: Mapping[str, Any], place: str, reading: Reading) -> Message:
    _check_keys(message, _MESSAGE_KEYS, place, reading)
    role = message.get("role")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        known = ", ".join(ROLES)
        _refuse(f"{place}.role", f"must be a lower-case word such as {known}" if role is not None else "is required")
    extra = _extra(message, place)
    content = message.get("content")
    if content is None and role == "assistant" and message.get("audio") is not None:
        content = _spoken(message["audio"], f"{place}.audio", reading)
    if content is None and "content" not in message and not extra and role != "assistant":
        _refuse(f"{place}.content", "this field is required")
    if isinstance(content, str):
        return Message(role, (content,), extra)
    if content is None:
        if role not in ("assistant", "function", "tool"):
            _refuse(f"{place}.content", "may be null only in messages of the assistant or of tools")
        return Message(role, (), extra)
    parts: list[Any] = [content] if _is_object(content) else _list(content)
    if not parts:
        _refuse(f"{place}.content", "must be a text, a part, or a list of them that is not empty")
    if len(parts) > MAX_PARTS:
        _refuse(f"{place}.content", f"has {len(parts)} parts; at most {MAX_PARTS} are possible")
    read = [item for number, part in enumerate(parts) for item in _part(part, f"{place}.content[{number}]", reading)]
    if role == "system" and any(isinstance(part, MediaRef) for part in read):
        log.warning("a system message holds media; many models know media in user messages only")
    return Message(role, tuple(read), extra)


def _spoken(audio: Any, place: str, reading: Reading) -> str:
    """What an earlier answer said, by its id; its transcript counts where that is sent too."""
    if not _is_object(audio) or not isinstance(audio.get("id"), str):
        _refuse(place, "must be an object with the id of a spoken answer")
    transcript = audio.get("transcript")
    text = transcript if isinstance(transcript, str) else reading.recall(audio["id"])
    if text is None:
        _refuse(f"{place}.id", "that answer is not known any more; send what it said as content")
    return text


def _extra(message: Mapping[str, Any], place: str) -> dict[str, Any]:
    """What templates may read beside role and content."""
    extra: dict[str, Any] = {}
    for name in ("name", "tool_call_id"):
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            _refuse(f"{place}.{name}", "must be 1 to 128 characters without blanks and < | \\ / >")
        extra[name] = value
    reasoning = message.get("reasoning", None) or message.get("reasoning_content", None)
    if reasoning is not None:
        if not isinstance(reasoning, str):
            _refuse(f"{place}.reasoning", "must be a text")
        extra["reasoning"] = extra["reasoning_content"] = reasoning
    if message.get("function_call") is not None:
        _refuse(f"{place}.function_call", "is the old form; send tool_calls")
    if message.get("tool_calls"):
        calls = _list(message["tool_calls"])
        if not 0 < len(calls) <= MAX_CALLS:
            _refuse(f"{place}.tool_calls", f"must be a list of at most {MAX_CALLS} calls")
        extra["tool_calls"] = [_call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(calls)]
    return extra


def _call(call: Any, place: str) -> dict[str, Any]:
    """An earlier call with its arguments as an object, which is what templates expect."""
    function = call.get("function") if _is_object(call) else None
    if not _is_object(function) or not isinstance(function.get("name"), str) or not function["name"]:
        _refuse(place, "needs a function with a name")
    arguments: Any = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    if not _is_object(arguments):
        _refuse(f"{place}.function.arguments", "must be a JSON object, as text or as it is")
    made = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return made | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


# ---- parts --------------------------------------------------------------------------------------------------------


def _part(part: Any, place: str, reading: Reading) -> list[str | MediaRef]:
    if isinstance(part, str):
        return [part]
    if not _is_object(part):
        _refuse(place, "must be a part: an object with a type, or a text")
    kind = part.get("type")
    if kind is None:
        kind = next((name for name in PART_TYPES if name in part), None)
        if kind is None:
            _refuse(f"{place}.type", f"is required; one of {', '.join(PART_TYPES)}")
    if not isinstance(kind, str) or kind not in PART_TYPES:
        near = difflib.get_close_matches(str(kind)[:64], PART_TYPES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        reason = f"Unsupported chat content part type {str(kind)[:64]!r}{hint} Supported are {', '.join(PART_TYPES)}."
        raise RequestError(f"{place}.type: {reason}", param=f"{place}.type")
    if kind in TEXT_PARTS:
        return _text(part, kind, place, reading)
    uuid = _uuid(part, place)
    keys = (*_PART_KEYS, kind, "image_url", "audio_embeds") if kind == "input_image" else (*_PART_KEYS, kind)
    _check_keys(part, (*keys, "audio_embeds") if kind == "video_embeds" else keys, place, reading)
    if kind in EMBEDS_PARTS:
        return _embeds(part, kind, place, uuid)
    value = part.get(kind)
    if kind == "input_audio":
        return [_reference("audio", _audio_source(value, f"{place}.{kind}", uuid), f"{place}.{kind}", uuid, reading)]
    if kind == "input_image" and value is None:
        value = part.get("image_url")
    modality = URL_PARTS[kind]
    if kind == "image_pil" and value is not None:
        _refuse(f"{place}.{kind}", "objects cannot be sent; null with a uuid names an item sent before")
    source = _url(value, f"{place}.{kind}", uuid)
    if source is not None and kind in ("image", "video", "audio") and source.startswith("/"):
        source = Path(source).as_uri()
    return [_reference(modality, source, f"{place}.{kind}", uuid, reading, _detail(part, value, place, kind))]


def _text(part: Mapping[str, Any], kind: str, place: str, reading: Reading) -> list[str | MediaRef]:
    key = TEXT_PARTS[kind]
    _check_keys(part, (*_PART_KEYS, key, "signature", "logprobs"), place, reading)
    text = part.get(key)
    if text is None and (kind in ("text", "refusal") or key not in part):
        log.warning("%s: a %s part without its text is left out", place, kind)
        return []
    if not isinstance(text, str):
        _refuse(f"{place}.{key}", "must be a text")
    return [text]


def _url(value: Any, place: str, uuid: str | None) -> str | None:
    """The address in a part, as a text or in an object."""
    return _member(value, "url", "detail", "a URL", place, uuid)


def _audio_source(value: Any, place: str, uuid: str | None) -> str | None:
    """The data as a data URL. What format it is, is recognised from the bytes."""
    if _is_object(value) and not isinstance(value.get("format"), str | None):
        _refuse(f"{place}.format", "must be a text")
    data = _member(value, "data", "format", "base64", place, uuid)
    return data if data is None or data.startswith("data:") else behind("data:audio/any;base64,", data)


def _member(value: Any, key: str, other: str, what: str, place: str, uuid: str | None) -> str | None:
    """The text under `key` of an object that may have `other` too, or the text that stands for the object.

    None for null, which needs a uuid.
    """
    if _is_object(value):
        unknown = sorted(set(map(str, value)) - {key, other})
        if unknown:
            _refuse(f"{place}.{unknown[0][:64]}", "unknown field")
        if key not in value:
            _refuse(f"{place}.{key}", "this field is required")
        value, place = value[key], f"{place}.{key}"
    if value is None:
        _needs_uuid(place, uuid)
        return None
    if not isinstance(value, str) or not value:
        _refuse(place, f"must be {what}")
    return value


def _embeds(part: Mapping[str, Any], kind: str, place: str, uuid: str | None) -> list[str | MediaRef]:
    found: list[str | MediaRef] = []
    for name in (kind, "audio_embeds") if kind == "video_embeds" and "audio_embeds" in part else (kind,):
        value, where = part.get(name), f"{place}.{name}"
        if value is None:
            _needs_uuid(where, uuid)
        elif _is_object(value):
            for key, tensor in value.items():
                if not isinstance(tensor, str | list | int | float):
                    _refuse(f"{where}.{str(key)[:64]}", "must be base64 of a tensor, or numbers")
            if not value:
                _refuse(where, "holds no tensor")
        elif not isinstance(value, str) or not value:
            _refuse(where, "must be base64 of a tensor, or an object of those")
        source: Any = dict(value) if _is_object(value) else value
        found.append(MediaRef(EMBEDS_PARTS[name], source, where, uuid=uuid, form="embeds"))
    return found


def _reference(
    modality: Modality,
    source: str | None,
    place: str,
    uuid: str | None,
    reading: Reading,
    options: Mapping[str, Any] | None = None,
) -> MediaRef:
    merged = {**reading.media_options.get(modality, {}), **(options or {})}
    return MediaRef(modality, source, place, merged, uuid)


def _detail(part: Mapping[str, Any], value: Any, place: str, kind: str) -> dict[str, Any]:
    """low is what costs the fewest tokens; all else is the model's own measure."""
    detail = value.get("detail") if _is_object(value) else part.get("detail")
    if detail not in (None, "auto", "low", "high", "original"):
        _refuse(f"{place}.{kind}.detail", "must be auto, low, high or original")
    return {"max_slice_nums": 1} if detail == "low" else {}


def _uuid(part: Mapping[str, Any], place: str) -> str | None:
    uuid = part.get("uuid")
    if uuid is None:
        return None
    if isinstance(uuid, list) or _is_object(uuid):
        _refuse(f"{place}.uuid", "must be a text")
    text = str(uuid)
    if not 0 < len(text) <= MAX_UUID or not text.isprintable():
        _refuse(f"{place}.uuid", f"must be 1 to {MAX_UUID} printable characters")
    return text


def _is_object(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []  # pyright: ignore - JSON


def _needs_uuid(place: str, uuid: str | None) -> None:
    if uuid is None:
        _refuse(place, "is null; without data a part needs the uuid of an item sent before")


def _check_keys(given: Mapping[str, Any], known: Sequence[str], place: str, reading: Reading) -> None:
    for key in given:
        if key in known:
            continue
        if not reading.allow_unknown:
            near = difflib.get_close_matches(str(key)[:64], known, n=1)
            _refuse(f"{place}.{str(key)[:64]}", "unknown field" + (f"; did you mean {near[0]}?" if near else ""))
        log.warning("%s: unknown field %.64r is ignored", place, key)


def _refuse(place: str, reason: str) -> NoReturn:
    raise RequestError(f"{place}: {reason}", param=place)
