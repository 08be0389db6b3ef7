"""A response on its way to the client: the events of its items, in the order that clients rely on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pybase64

from sensorium.media.encode import Wire
from sensorium.server.chat_answer import CallPiece
from sensorium.server.realtime.conversation import Item, Status, made_id
from sensorium.server.realtime.schema import AudioFormat
from sensorium.server.realtime.session import RATES, Answers

Tell = Callable[..., Awaitable[None]]
"""Sends an event: its type, and its fields by name."""
PIECE_MS = 400
"""Most sound in one event."""
LONG_PCM = 96_000
"""Bytes of sound from which it is converted off the event loop."""


@dataclass(slots=True)
class Response:
    """As clients see it."""

    id: str
    conversation_id: str | None
    metadata: dict[str, str] | None
    answers: Answers
    status: str = "in_progress"
    status_details: dict[str, Any] | None = None
    stopped: str | None = None
    """Why it is to end early, where it is."""
    output: list[Item] = field(default_factory=list[Item])
    usage: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": self.status_details,
            "output": [item.told() for item in self.output],
            "conversation_id": self.conversation_id,
            "output_modalities": self.answers.modalities,
            "max_output_tokens": self.answers.max_output_tokens,
            "usage": self.usage,
            "metadata": self.metadata,
        }
        return {**told, "audio": {"output": self.answers.sound()}} if self.answers.speaks else told


class Mouth:
    """The sound of one answer as its client wants it, in pieces of PIECE_MS."""

    def __init__(self, format_: AudioFormat, speed: float) -> None:
        rate = format_.rate or RATES[format_.type]
        codec = {"audio/pcm": "pcm", "audio/pcmu": "mulaw", "audio/pcma": "alaw"}[format_.type]
        self._wire = Wire(codec, rate, speed)  # type: ignore[arg-type]
        self._bytes_per_ms = rate * (2 if codec == "pcm" else 1) // 1000
        self._num_bytes = 0

    @property
    def sent_ms(self) -> int:
        return self._num_bytes // self._bytes_per_ms

    async def say(self, pcm: bytes, *, last: bool = False) -> list[bytes]:
        """16-bit samples at 24 kHz -> pieces to send."""
        if len(pcm) > LONG_PCM:
            data = await asyncio.to_thread(self._convert, pcm, last)
        else:
            data = self._convert(pcm, last)
        self._num_bytes += len(data)
        step = PIECE_MS * self._bytes_per_ms
        return [data[start : start + step] for start in range(0, len(data), step)]

    def _convert(self, pcm: bytes, last: bool) -> bytes:
        data = self._wire.write(pcm)
        return data + self._wire.finish() if last else data


class Writer:
    """Tells the growth of one answer: a message where there is text, and an item for each call.

    Of an answer that is heard, the text is the transcript of the sound, and `sound` tells that.
    """

    def __init__(self, response: Response, tell: Tell, add: Callable[[Item], str | None]) -> None:
        """add: puts an item into the conversation and returns what is before it."""
        self._response = response
        self._tell = tell
        self._add = add
        self._text = ""
        self._open: Item | None = None
        self._before: str | None = None
        self._speaks = response.answers.speaks
        self._mouth: Mouth | None = None

    async def write(self, text: str, calls: Sequence[CallPiece]) -> None:
        if text:
            await self._open_message()
            self._text += text
            await self._say(f"{self._spelling}.delta", delta=text)
        for call in calls:
            if call.name is not None:
                known = {"call_id": call.id or made_id("call"), "name": call.name, "arguments": ""}
                await self._begin(Item(made_id("item"), "function_call", status="in_progress", call=known))
            if call.arguments and self._open is not None:
                self._open.call["arguments"] += call.arguments
                await self._tell(
                    "response.function_call_arguments.delta",
                    **self._place(),
                    call_id=self._open.call["call_id"],
                    delta=call.arguments,
                )

    async def sound(self, pcm: bytes, *, last: bool) -> None:
        """More of what is heard, 16-bit at 24 kHz; last: all of it is there then."""
        await self._open_message()
        assert self._mouth is not None
        for piece in await self._mouth.say(pcm, last=last):
            await self._say("response.output_audio.delta", delta=pybase64.b64encode(piece).decode())
        item = self._open
        assert item is not None
        item.sound_ms, item.is_said = self._mouth.sent_ms, last

    async def end(self, status: Status = "completed") -> None:
        """Close what is open; an answer without anything is an empty message."""
        if not self._response.output and status == "completed":
            await self._open_message()
        await self._close(status)

    @property
    def _spelling(self) -> str:
        return "response.output_audio_transcript" if self._speaks else "response.output_text"

    async def _open_message(self) -> None:
        if self._open is not None and self._open.type == "message":
            return
        await self._begin(Item(made_id("item"), "message", "assistant", "in_progress"))
        if self._speaks:
            self._mouth = Mouth(self._response.answers.output, self._response.answers.speed)
        await self._say("response.content_part.added", part=self._part())

    async def _begin(self, item: Item) -> None:
        await self._close("completed")
        self._open = item
        self._response.output.append(item)
        self._before = before = self._add(item)
        place = len(self._response.output) - 1
        ident = self._response.id
        await self._tell("response.output_item.added", response_id=ident, output_index=place, item=item.told())
        if self._response.conversation_id is not None:
            await self._tell("conversation.item.added", previous_item_id=before, item=item.told())

    async def _close(self, status: Status) -> None:
        item = self._open
        if item is None:
            return
        item.status = status
        if item.type == "message":
            await self._close_message(item)
        else:
            await self._tell("response.function_call_arguments.done", **self._place(), **item.call)
        place = self._place()
        self._open = None
        await self._tell(
            "response.output_item.done",
            response_id=place["response_id"],
            output_index=place["output_index"],
            item=item.told(),
        )
        if self._response.conversation_id is not None:
            await self._tell("conversation.item.done", previous_item_id=self._before, item=item.told())

    async def _close_message(self, item: Item) -> None:
        name, kind = ("transcript", "output_audio") if self._speaks else ("text", "output_text")
        item.content, item.parts = [{"type": kind, name: self._text}], [self._text]
        if self._speaks:
            await self._say("response.output_audio.done")
        await self._say(f"{self._spelling}.done", **{name: self._text})
        await self._say("response.content_part.done", part=self._part())
        self._text = ""

    def _part(self) -> dict[str, str]:
        return {"type": "audio", "transcript": self._text} if self._speaks else {"type": "text", "text": self._text}

    async def _say(self, kind: str, **fields: Any) -> None:
        await self._tell(kind, **self._place(), content_index=0, **fields)

    def _place(self) -> dict[str, Any]:
        item = self._open
        ident = item.id if item is not None else ""
        return {
            "response_id": self._response.id,
            "item_id": ident,
            "output_index": len(self._response.output) - 1,
        }
