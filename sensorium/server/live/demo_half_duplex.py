"""WS /ws/half_duplex/{id}: the published demo's conversation in turns, which it hears end by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
from starlette.types import Receive, Scope, Send

from sensorium.errors import OverloadedError, RequestError, SensoriumError
from sensorium.media.audio import from_array
from sensorium.server.errors import describe
from sensorium.server.generation import Origin
from sensorium.server.live.clock import Clock, within
from sensorium.server.live.demo_answers import (
    GenerationOptions,
    Part,
    Telling,
    TtsOptions,
    Turns,
    parts_of,
    refusal,
)
from sensorium.server.live.demo_talk import MAX_MESSAGE, float_sound, samples_of
from sensorium.server.live.sockets import NORMAL, HangUpError, Socket, accepted, answer_first, decoded
from sensorium.server.live.sound import HEARD_RATE, SPOKEN_RATE
from sensorium.server.seats import Seats
from sensorium.server.speech.voices import Picked, owner_of
from sensorium.types import ChatOptions, Message
from sensorium.vad import Detector, VadOptions, VoiceActivity

log = logging.getLogger(__name__)
PATH = "/ws/half_duplex/{id}"
DEAF_S = 0.5
"""What is heard so soon after `prepared` is not listened to: microphones crackle when they are opened."""
MAX_CHUNK_S, MAX_SESSION_S = 10, 3600
MAX_TURN_S = 120
"""Of one person's speech."""
MAX_KEPT_S = 600
"""Of sound in a conversation; older turns are forgotten."""


class Vad(msgspec.Struct, forbid_unknown_fields=True):
    threshold: float = 0.7
    min_speech_duration_ms: float = 128
    min_silence_duration_ms: float = 500
    speech_pad_ms: float = 30

    def options(self) -> VadOptions:
        return VadOptions(**msgspec.structs.asdict(self))


class SessionOptions(msgspec.Struct, forbid_unknown_fields=True):
    timeout_s: float = 300


class Config(msgspec.Struct, forbid_unknown_fields=True):
    vad: Vad = msgspec.field(default_factory=Vad)
    generation: GenerationOptions = msgspec.field(default_factory=GenerationOptions)
    tts: TtsOptions = msgspec.field(default_factory=TtsOptions)
    session: SessionOptions = msgspec.field(default_factory=SessionOptions)


class Prepare(msgspec.Struct, tag="prepare", forbid_unknown_fields=True):
    system_content: list[Part] | None = None
    config: Config = msgspec.field(default_factory=Config)


class AudioChunk(msgspec.Struct, tag="audio_chunk", forbid_unknown_fields=True):
    audio_base64: str


class Stop(msgspec.Struct, tag="stop"):
    pass


_SAID: msgspec.json.Decoder[Prepare | AudioChunk | Stop] = msgspec.json.Decoder(Prepare | AudioChunk | Stop)


def read_said(data: str | bytes) -> Prepare | AudioChunk | Stop:
    return decoded(_SAID, data)


class HalfDuplexDoor:
    """The endpoint, as raw ASGI. The id that a client makes up for itself is its own affair."""

    def __init__(self, turns: Turns, clock: Clock, seats: Seats, detector: Callable[[], Detector]) -> None:
        self._turns = turns
        self._clock = clock
        self._seats = seats
        self._detector = detector
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._turns.served.client()
        socket, key = await accepted(scope, receive, send, self._clock, MAX_MESSAGE)
        converse = partial(self._converse, socket, scope, key)
        await answer_first(socket, self._seats, key, converse, "no prepare", greeting='{"type":"queue_done"}')

    async def _converse(self, socket: Socket, scope: Scope, key: str, first: str | bytes) -> None:
        most = self._turns.config.max_realtime_sessions
        try:
            said = read_said(first)
            if not isinstance(said, Prepare):
                raise RequestError("the first message is `prepare`", param="type")
            if self._open >= most:
                raise OverloadedError(f"all {most} conversations are taken; try again later", reason="sessions")
            telling = Telling(socket, self._clock)
            talk = Conversation(self._turns, said, telling, scope, self._detector())
            await talk.prepare()
            self._seats.take(key)
        except SensoriumError as error:
            await socket.refuse(error, refusal(error))
            return
        self._open += 1
        try:
            await self._hold(talk, socket, telling, said.config.session.timeout_s)
        finally:
            self._open -= 1
            self._seats.give_back(key)
            await talk.close()

    async def _hold(self, talk: Conversation, socket: Socket, telling: Telling, timeout_s: float) -> None:
        began = self._clock.now()
        await telling.tell("prepared", session_id=talk.id, timeout_s=timeout_s)
        while True:
            left = timeout_s - (self._clock.now() - began)
            try:
                data = await within(self._clock, max(left, 0), socket.read())
            except asyncio.TimeoutError:
                await telling.tell("timeout", elapsed_s=round(self._clock.now() - began, 1))
                await socket.close(NORMAL)
                return
            try:
                said = read_said(data)
                if isinstance(said, Stop):
                    await socket.close(NORMAL)
                    return
                if isinstance(said, Prepare):
                    raise RequestError("the conversation is prepared already")
                await talk.hear(samples_of(said.audio_base64, "audio_base64"))
            except SensoriumError as error:
                await telling.tell_error(error)
                socket.wrong()


class Conversation:
    """What was said, what is being said, and whose turn it is. Sound that comes while it answers is not heard."""

    def __init__(self, turns: Turns, said: Prepare, telling: Telling, scope: Scope, detector: Detector) -> None:
        """Raises what is wrong with the wishes."""
        said.config.tts.check()
        timeout_s = said.config.session.timeout_s
        if not 1 <= timeout_s <= MAX_SESSION_S:
            reason = f"config.session.timeout_s: must be 1 to {MAX_SESSION_S}"
            raise RequestError(reason, param="config.session.timeout_s")
        self.id = Origin.of(scope, "half-").id
        self._turns = turns
        self._scope = scope
        self._telling = telling
        self._sampling = said.config.generation.sampling()
        self._wants_sound = said.config.tts.enabled
        self._activity = VoiceActivity(detector, said.config.vad.options())
        self._system = parts_of(said.system_content or (), "system_content")
        self._history: list[tuple[Message, float]] = []
        """Messages, and how many seconds of sound each has."""
        self._voice: Picked | None = None
        self._deaf = int(DEAF_S * HEARD_RATE)
        self._num_turns = 0
        self._answering: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        self._voice = await self._turns.voice(self._wants_sound, owner_of(self._scope["state"]))

    async def close(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
            await asyncio.gather(self._answering, return_exceptions=True)

    async def hear(self, samples: np.ndarray) -> None:
        """More sound, at 16 kHz. Raises RequestError for too much at once."""
        if len(samples) > MAX_CHUNK_S * HEARD_RATE:
            reason = f"audio_base64: at most {MAX_CHUNK_S} s in a message"
            raise RequestError(reason, param="audio_base64")
        if self._answering is not None:
            if not self._answering.done():
                return
            self._answering.result()
        skipped = min(self._deaf, len(samples))
        self._deaf -= skipped
        activity = self._activity
        was_speaking = activity.is_speaking
        speech = activity.feed(samples[skipped:])
        if speech is None and activity.seconds > MAX_TURN_S:
            speech = activity.flush()
        heard = activity.is_speaking or speech is not None
        if heard and not was_speaking:
            await self._telling.tell("vad_state", speaking=True)
        if not activity.is_speaking and (heard or was_speaking):
            await self._telling.tell("vad_state", speaking=False)
        if speech is not None:
            self._answering = asyncio.create_task(self._answer(speech))

    async def _answer(self, speech: np.ndarray) -> None:
        """One turn. What goes wrong is told, and the turn forgotten."""
        seconds = len(speech) / HEARD_RATE
        asked = Message("user", (from_array(speech, HEARD_RATE, "audio_base64"),))
        try:
            await self._telling.tell("generating", speech_duration_ms=round(seconds * 1000))
            text = await self._say(asked)
            self._num_turns += 1
            self._history += [(asked, seconds), (Message("assistant", (text,)), 0.0)]
            while sum(length for _, length in self._history) > MAX_KEPT_S:
                del self._history[:2]
            await self._telling.tell("turn_done", turn_index=self._num_turns, text=text)
        except SensoriumError as error:
            await self._telling.tell_error(error)
        except HangUpError:
            raise
        except Exception as error:
            log.exception("a turn of %s failed", self.id)
            _, body, _ = describe(error)
            await self._telling.tell("error", error=body.error.message)
        self._activity.reset()

    async def _say(self, asked: Message) -> str:
        """Generate and tell an answer; its text."""
        system = [Message("system", self._system)] if self._system else []
        messages = [*system, *(message for message, _ in self._history), asked]
        origin = Origin.of(self._scope, "half-")
        reply = await self._turns.begin(
            replace(origin, id=f"{origin.id}-{self._num_turns}"), messages, ChatOptions(), self._sampling, self._voice
        )
        said, number = "", 0
        async with contextlib.aclosing(reply.pieces()) as pieces:
            async for text, pcm in pieces:
                said += text
                await self._chunk(number, text, pcm, is_final=False)
                number += 1
        await self._chunk(number, "", b"", is_final=True)
        return said

    async def _chunk(self, number: int, text: str, pcm: bytes, *, is_final: bool) -> None:
        heard: dict[str, Any] = {"audio_data": float_sound(pcm) if pcm else None, "audio_sample_rate": SPOKEN_RATE}
        milliseconds = len(pcm) * 1000 // (2 * SPOKEN_RATE)
        await self._telling.tell(
            "chunk", chunk_index=number, text_delta=text, **heard, is_final=is_final, duration_ms=milliseconds
        )
