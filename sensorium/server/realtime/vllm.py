"""The transcription dialect of vLLM on the same address: session.update with a model, sound, commit, one transcript.

Sound is 16-bit PCM at 16 kHz. Errors are a text with a code. The transcript begins when the last commit says final.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from sensorium.errors import NotFoundError, SensoriumError
from sensorium.server.errors import describe
from sensorium.server.realtime.audio import Ear, Heard, to_wav
from sensorium.server.realtime.conversation import made_id
from sensorium.server.realtime.schema import AudioFormat, Transcription, read_object, refusal
from sensorium.server.realtime.transcripts import Transcriber
from sensorium.types import MediaRef
from sensorium.vad import RATE


class TranscriptionDialect:
    def __init__(
        self,
        check_name: Callable[[str | None], None],
        transcriber: Transcriber,
        send: Callable[[dict[str, Any]], Awaitable[None]],
        max_s: float,
    ) -> None:
        self._check_name = check_name
        self._transcriber = transcriber
        self._send = send
        self._ear = Ear(AudioFormat(rate=RATE))
        self._heard = Heard(int(max_s * RATE))
        self._validated = False

    async def take(self, data: str | bytes) -> bool:
        """One message; whether it was good."""
        try:
            await self._dispatch(data)
        except SensoriumError as error:
            detail = describe(error)[1].error
            await self._send(
                {"type": "error", "event_id": made_id("event"), "error": detail.message, "code": detail.code}
            )
            return False
        return True

    async def _dispatch(self, data: str | bytes) -> None:
        event = read_object(data)
        if not event:
            raise refusal("invalid_json", "the message is not a JSON object")
        kind = event.get("type")
        if kind == "session.update":
            self._update(event.get("model"))
        elif kind == "input_audio_buffer.append":
            if not isinstance(event.get("audio"), str):
                raise refusal("invalid_event", "audio: must be base64")
            self._heard.add(self._ear.hear(event["audio"]))
        elif kind == "input_audio_buffer.commit":
            if not self._validated:
                raise refusal("model_not_validated", "session.update with the model must come first")
            if event.get("final"):
                await self._transcribe()
        elif isinstance(kind, str):
            raise refusal("unknown_event", f"there is no event of type {kind[:64]!r}")
        else:
            raise refusal("invalid_event", "type: this field is required")

    def _update(self, model: Any) -> None:
        if not isinstance(model, str):
            raise refusal("invalid_event", "model: this field is required")
        try:
            self._check_name(model)
        except NotFoundError as error:
            raise refusal("model_not_found", error.message) from None
        if not self._transcriber.is_able(Transcription()):
            raise refusal("model_not_found", "this model cannot write down speech")
        self._validated = True

    async def _transcribe(self) -> None:
        samples = self._heard.take(self._heard.start, self._heard.end)
        if not len(samples):
            raise refusal("invalid_audio", "there is no sound to transcribe")
        recording = MediaRef("audio", to_wav(samples), "audio")
        whole = ""
        async with contextlib.aclosing(self._transcriber.texts(recording, Transcription())) as deltas:
            async for delta, _ in deltas:
                whole += delta
                await self._tell("transcription.delta", delta=delta)
        usage = {"type": "duration", "seconds": round(len(samples) / RATE, 3)}
        await self._tell("transcription.done", text=whole, usage=usage)

    async def _tell(self, kind: str, **fields: Any) -> None:
        await self._send({"type": kind, "event_id": made_id("event"), **fields})
