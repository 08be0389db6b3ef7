"""The items of a conversation: what clients may add, what they are told, and the messages they make for the model."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sensorium.errors import NotFoundError, RequestError, TooLargeError
from sensorium.server.realtime.heard import heard_part
from sensorium.server.realtime.schema import ItemInput, Part, refusal
from sensorium.types import MediaRef, Message

MAX_ITEMS, MAX_BYTES = 2048, 64 << 20
TEXTS = ("input_text", "text", "output_text")
ROLES = {
    "system": ("input_text", "text"),
    "user": ("input_text", "text", "input_audio", "input_image"),
    "assistant": ("output_text", "text", "output_audio", "audio"),
}
Hear = Callable[[str], bytes]
Status = Literal["completed", "in_progress", "incomplete"]


@dataclass(slots=True)
class Item:
    """content: the parts as clients are told of them; parts: what the model gets of them."""

    id: str
    type: Literal["message", "function_call", "function_call_output"]
    role: str = ""
    status: Status = "completed"
    content: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    parts: list[str | MediaRef] = field(default_factory=list["str | MediaRef"])
    call: dict[str, str] = field(default_factory=dict[str, str])
    sound_ms: int | None = None
    """How much sound of it was sent; None where it has none. is_said: that was all."""
    is_said: bool = False
    is_left_out: bool = False
    """The model is not shown it any more; see Retention."""

    @property
    def size(self) -> int:
        """Bytes of the media in it."""
        return sum(len(part.source) for part in self.parts if isinstance(part, MediaRef) and part.source is not None)

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))

    def cut(self, heard_ms: int) -> None:
        """Forget what was not heard of an answer with sound."""
        assert self.sound_ms is not None
        text = heard_part(self.text, heard_ms, self.sound_ms if self.is_said else None)
        self.content, self.parts = [{"type": "output_audio", "transcript": text}], [text] if text else []
        self.sound_ms, self.is_said = heard_ms, True

    def told(self) -> dict[str, Any]:
        """As clients see it: sound and pictures are not sent back."""
        told: dict[str, Any] = {"id": self.id, "object": "realtime.item", "type": self.type, "status": self.status}
        if self.type != "message":
            return told | self.call
        return told | {"role": self.role, "content": [dict(part) for part in self.content]}


def made_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


def spoken_item(ident: str, wav: bytes | None) -> Item:
    """What a user said; None where that is nothing at all."""
    item = Item(ident, "message", "user", content=[{"type": "input_audio", "transcript": None}])
    if wav is not None:
        item.parts.append(MediaRef("audio", wav, f"item {ident}"))
    return item


class Conversation:
    def __init__(self) -> None:
        self.id = made_id("conv")
        self._items: dict[str, Item] = {}
        self._bytes = 0

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def get(self, ident: str, code: str = "item_not_found") -> Item:
        """Raises NotFoundError with that code."""
        if ident not in self._items:
            error = NotFoundError(f"item_id: there is no item {ident[:64]!r}", param="item_id")
            error.code = code
            raise error
        return self._items[ident]

    @property
    def is_heard(self) -> bool:
        """Whether an answer in it has sound."""
        return any(item.sound_ms is not None for item in self)

    @property
    def last_id(self) -> str | None:
        return next(reversed(self._items), None)

    def add(self, item: Item, previous: str | None = None) -> str | None:
        """At the end, after another item, or with previous "root" in front; returns what is before it now."""
        if item.id in self._items:
            error = RequestError(f"item.id: {item.id!r} is taken", param="item.id")
            error.code = "item_create_duplicate_item_id"
            raise error
        if len(self._items) >= MAX_ITEMS or self._bytes + item.size > MAX_BYTES:
            raise TooLargeError(
                f"item: a conversation has at most {MAX_ITEMS} items and {MAX_BYTES >> 20} MiB of media; delete some"
            )
        if previous is None or previous == self.last_id:
            before = self.last_id
            self._items[item.id] = item
        else:
            if previous != "root":
                self.get(previous)
            order = list(self._items.values())
            place = 0 if previous == "root" else list(self._items).index(previous) + 1
            order.insert(place, item)
            self._items = {one.id: one for one in order}
            before = order[place - 1].id if place else None
        self._bytes += item.size
        return before

    def delete(self, ident: str) -> None:
        self._bytes -= self.get(ident).size
        del self._items[ident]

    def read(self, given: ItemInput, hear: Hear, place: str = "item") -> Item:
        """A new item, or the one referred to. hear: base64 of sound -> a WAVE file. Raises RequestError naming the
        field."""
        if given.type == "item_reference":
            return self.get(given.id or "")
        ident = given.id or made_id("item")
        if given.type == "message":
            return _message(given, ident, hear, place)
        if given.type == "function_call_output":
            call = {"call_id": _needed(given, "call_id", place), "output": _needed(given, "output", place)}
        else:
            call = {"call_id": given.call_id or made_id("call")}
            call |= {name: _needed(given, name, place) for name in ("name", "arguments")}
            try:
                if not isinstance(json.loads(call["arguments"]), dict):
                    raise ValueError
            except (ValueError, RecursionError):
                reason = f"{place}.arguments: must be the text of a JSON object"
                raise RequestError(reason, param=f"{place}.arguments") from None
        return Item(ident, given.type, call=call)


def to_messages(instructions: str, items: Sequence[Item]) -> list[Message]:
    """What the model is given. Neighbouring items of one speaker are one message."""
    messages = [Message("system", (instructions,))] if instructions else []
    for item in items:
        if item.type == "function_call" and item.status == "incomplete":
            continue  # half a call is nothing that a model knows how to read
        if item.type == "function_call":
            function = {"name": item.call["name"], "arguments": json.loads(item.call["arguments"])}
            calls = [{"type": "function", "id": item.call["call_id"], "function": function}]
            messages.append(Message("assistant", (), {"tool_calls": calls}))
        elif item.type == "function_call_output":
            messages.append(Message("tool", (item.call["output"],), {"tool_call_id": item.call["call_id"]}))
        elif item.parts and messages and messages[-1].role == item.role and not messages[-1].extra:
            messages[-1] = Message(item.role, (*messages[-1].parts, *item.parts))
        elif item.parts:
            messages.append(Message(item.role, tuple(item.parts)))
    return messages


def _message(given: ItemInput, ident: str, hear: Hear, place: str) -> Item:
    role = given.role
    if role is None:
        raise _missing(f"{place}.role")
    if not given.content:
        raise RequestError(f"{place}.content: must have at least one part", param=f"{place}.content")
    item = Item(ident, "message", role)
    for number, part in enumerate(given.content):
        where = f"{place}.content[{number}]"
        if part.type not in ROLES[role]:
            known = ", ".join(ROLES[role])
            reason = f"{where}.type: {part.type!r} is not possible for {role}; possible are {known}"
            raise RequestError(reason, param=f"{where}.type")
        _add(item, part, hear, where)
    return item


def _add(item: Item, part: Part, hear: Hear, where: str) -> None:
    if part.type in TEXTS or part.type in ("output_audio", "audio"):
        name = "text" if part.type in TEXTS else "transcript"
        text = _needed(part, name, where)
        item.content.append({"type": part.type, name: text})
        item.parts.append(text)
    elif part.type == "input_audio":
        audio = _needed(part, "audio", where)
        item.content.append({"type": part.type, "transcript": part.transcript})
        item.parts.append(MediaRef("audio", hear(audio), f"{where}.audio"))
    else:
        url = _needed(part, "image_url", where)
        options = {"max_slice_nums": 1} if part.detail == "low" else {}
        # The address is not repeated to the client: as a data URL it is the whole picture.
        shown = {} if url.startswith("data:") else {"image_url": url}
        item.content.append({"type": part.type, **shown, "detail": part.detail or "auto"})
        item.parts.append(MediaRef("image", url, f"{where}.image_url", options))


def _needed(given: ItemInput | Part, name: str, place: str) -> Any:
    value = getattr(given, name)
    if value is None:
        raise _missing(f"{place}.{name}")
    return value


def _missing(place: str) -> RequestError:
    return refusal("missing_required_parameter", f"{place}: this field is required", place)
