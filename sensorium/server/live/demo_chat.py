"""WS /ws/chat: one question of the published demo's client and its answer."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any, Literal

import msgspec
from starlette.types import Receive, Scope, Send

from sensorium.errors import RequestError, SensoriumError
from sensorium.server.generation import Origin
from sensorium.server.live.clock import Clock
from sensorium.server.live.demo_answers import (
    MAX_MESSAGE,
    GenerationOptions,
    Part,
    Reply,
    Telling,
    TtsOptions,
    Turns,
    parts_of,
    refusal,
)
from sensorium.server.live.demo_talk import float_sound, slices
from sensorium.server.live.sockets import NORMAL, HangUpError, Socket, accepted, answer_first, decoded
from sensorium.server.seats import Seats
from sensorium.server.speech.voices import owner_of
from sensorium.types import ChatOptions, Message

PATH = "/ws/chat"


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


class ImageOptions(msgspec.Struct, forbid_unknown_fields=True):
    max_slice_nums: int | None = None


class Chat(msgspec.Struct, forbid_unknown_fields=True):
    messages: list[ChatMessage]
    streaming: bool = True
    generation: GenerationOptions = msgspec.field(default_factory=GenerationOptions)
    image: ImageOptions = msgspec.field(default_factory=ImageOptions)
    tts: TtsOptions = msgspec.field(default_factory=lambda: TtsOptions(enabled=False))
    use_tts_template: bool = False
    omni_mode: bool = False
    enable_thinking: bool = False

    def options(self) -> ChatOptions:
        media: dict[str, Any] = {"omni_mode": True} if self.omni_mode else {}
        if self.image.max_slice_nums is not None:
            media["max_slice_nums"] = slices(self.image.max_slice_nums)
        variables = {"enable_thinking": self.enable_thinking}
        if self.use_tts_template:
            variables["use_tts_template"] = True
        return ChatOptions(media_kwargs=media, template_kwargs=variables)


_CHAT: msgspec.json.Decoder[Chat] = msgspec.json.Decoder(Chat)


class ChatDoor:
    """The endpoint, as raw ASGI."""

    def __init__(self, turns: Turns, clock: Clock, seats: Seats) -> None:
        self._turns = turns
        self._clock = clock
        self._seats = seats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._turns.served.client()
        socket, key = await accepted(scope, receive, send, self._clock, MAX_MESSAGE)
        await answer_first(socket, self._seats, key, partial(self._answer, socket, scope), "no question")

    async def _answer(self, socket: Socket, scope: Scope, first: str | bytes) -> None:
        telling = Telling(socket, self._clock)
        working = asyncio.create_task(self._work(telling, scope, first))
        leaving = asyncio.create_task(_left(socket))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
                await socket.close(NORMAL)
        except SensoriumError as error:
            await socket.refuse(error, refusal(error))
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _work(self, telling: Telling, scope: Scope, first: str | bytes) -> None:
        asked, messages = await asyncio.to_thread(_read, first)
        voice = await self._turns.voice(asked.tts.enabled, owner_of(scope["state"]))
        origin = Origin.of(scope, "chat-")
        reply = await self._turns.begin(origin, messages, asked.options(), asked.generation.sampling(), voice)
        await self._tell(telling, reply, asked.streaming)

    async def _tell(self, telling: Telling, reply: Reply, streaming: bool) -> None:
        said, sound = "", b""
        count = {"input_tokens": reply.num_prompt_tokens}
        async with contextlib.aclosing(reply.pieces()) as pieces:
            async for text, pcm in pieces:
                if not said and not sound:
                    await telling.tell("prefill_done", **count)
                said, sound = said + text, sound if streaming else sound + pcm
                if streaming:
                    heard = {"audio_data": float_sound(pcm)} if pcm else {}
                    await telling.tell("chunk", **({"text_delta": text} if text else {}), **heard)
        whole = {"audio_data": float_sound(sound)} if sound else {}
        await telling.tell("done", text=said, generated_tokens=reply.tally.tokens, **count, **whole)


def _read(data: str | bytes) -> tuple[Chat, list[Message]]:
    """What is asked, and the conversation. Raises RequestError naming what is wrong."""
    asked = decoded(_CHAT, data)
    asked.tts.check()
    if not asked.messages:
        raise RequestError("messages: must have at least one", param="messages")
    messages = [
        Message(message.role, parts_of(message.content, f"messages[{number}].content"))
        for number, message in enumerate(asked.messages)
    ]
    return asked, messages


async def _left(socket: Socket) -> None:
    """Until the client goes; there is one question for a connection, and what else it says is not read."""
    with contextlib.suppress(HangUpError):
        while True:
            await socket.read()
