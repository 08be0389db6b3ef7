"""POST /v1/audio/speech: a text read aloud, sent as it is made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import msgspec
import pybase64
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sensorium.config import ServerConfig
from sensorium.errors import RequestError
from sensorium.media.encode import SoundEncoder, SoundFormat, media_type
from sensorium.server.door import read_request
from sensorium.server.generation import Origin, unless_gone
from sensorium.server.metrics import Metrics
from sensorium.server.reports import audio_tokens
from sensorium.server.served import Served
from sensorium.server.speech.schema import (
    CREATE_SPEECH,
    CreateSpeech,
    SpeechDelta,
    SpeechDone,
    SpeechUsage,
    chosen,
)
from sensorium.server.speech.spoken import Reading, reading_prompt
from sensorium.server.speech.voices import Voices, owner_of, require_speaking
from sensorium.server.sse import EventStream, frame

PATH = "/v1/audio/speech"


def speech_routes(served: Served, config: ServerConfig, metrics: Metrics, voices: Voices) -> list[Route]:
    return [Route(PATH, SpeechDoor(served, config, metrics, voices), methods=["POST"])]


class SpeechDoor:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, config: ServerConfig, metrics: Metrics, voices: Voices) -> None:
        self._served = served
        self._config = config
        self._metrics = metrics
        self._voices = voices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        require_speaking(self._served.client())
        request, _ = await read_request(self._served, self._config, CREATE_SPEECH, {}, scope, receive)
        if not request.input.strip():
            raise RequestError("input: there is nothing to read", param="input")
        await unless_gone(receive, self._answer(request, scope, send))

    async def _answer(self, request: CreateSpeech, scope: Scope, send: Send) -> None:
        client = self._served.client()
        origin = Origin.of(scope, "speech-")
        voice = await self._voices.pick(chosen(request.voice), owner_of(scope["state"]), client, "voice")
        text = request.input.strip()
        prompt, num_ids = await reading_prompt(client, text, voice, request.instructions, origin.namespace)
        reading = Reading(client, self._metrics, origin, prompt, num_ids, voice)
        form: SoundFormat = request.response_format or "mp3"
        async with contextlib.aclosing(encoded(reading.sound(), form, request.speed or 1.0)) as pieces:
            first = await anext(pieces, b"")  # what is refused before is an error of its own
            if request.stream_format != "sse":
                async with EventStream(send, 0, failure=None, media_type=media_type(form)) as output:
                    await output.write(first)
                    async for piece in pieces:
                        await output.write(piece)
                    await output.end()
                return
            async with EventStream(send, self._config.sse_keep_alive_interval) as output:
                await output.write(_delta(first))
                async for piece in pieces:
                    await output.write(_delta(piece))
                spoken = audio_tokens(reading.tally.sound_bytes)
                usage = SpeechUsage(len(prompt.ids), spoken, len(prompt.ids) + spoken)
                await output.end(frame(msgspec.json.encode(SpeechDone(usage))))


async def encoded(sound: AsyncGenerator[bytes, None], form: SoundFormat, speed: float) -> AsyncGenerator[bytes, None]:
    """16-bit samples at 24 kHz as bytes of a format, encoded off the event loop."""
    async with contextlib.aclosing(sound):
        encoder = SoundEncoder(form, speed)
        async for pcm in sound:
            if data := await asyncio.to_thread(encoder.write, pcm):
                yield data
        if data := await asyncio.to_thread(encoder.finish):
            yield data


def _delta(data: bytes) -> bytes:
    return frame(msgspec.json.encode(SpeechDelta(pybase64.b64encode(data).decode())))
