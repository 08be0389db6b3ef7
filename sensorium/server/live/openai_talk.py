"""One session of /v1/live/sessions: the service's events as OpenAI's, a client's commands as the service's calls."""

from __future__ import annotations

import asyncio
import binascii
import time
import uuid
from typing import Any

import msgspec
import numpy as np
import pybase64

from sensorium.errors import NotFoundError, RequestError, SensoriumError
from sensorium.server.errors import describe
from sensorium.server.live import openai_wire as wire
from sensorium.server.live.clock import Clock
from sensorium.server.live.events import (
    Closed,
    Event,
    Late,
    Opened,
    Queued,
    Restarted,
    SoundDelta,
    TurnEnded,
    UnitOver,
    Wrong,
)
from sensorium.server.live.outbox import Outbox
from sensorium.server.live.paced import Paced
from sensorium.server.live.session import LiveSession
from sensorium.server.live.sockets import CLOSE_CODES
from sensorium.server.live.sound import HEARD_RATE, SPOKEN_RATE, Resampled, read_pcm

REASONS = {"stopped": "close_requested", "failed": "connection_lost", "engine_restarted": "connection_lost"}
TOLD_UNITS = 10
"""Usage is told every so many units."""


class OpenAITalk:
    """`follow` once, to the end; `take` for every message."""

    def __init__(self, session: LiveSession, start: wire.StartSession, model: str, clock: Clock) -> None:
        self.session = session
        self.outbox = Outbox(clock)
        self.close_code = 1000
        self._start = start
        self._clock = clock
        rate = wire.rate_of(start.session)
        self._rate = rate
        expires = int(time.time() + session.limits.max_s)
        self._told = wire.session_fields(session.id, model, expires, start.session, rate)
        self._heard = Resampled(rate, HEARD_RATE)
        self._spoken = Resampled(SPOKEN_RATE, rate)
        self._paced = Paced(rate, self._play, clock, silence=start.session.sensorium.silence == "send")
        self._playing: asyncio.Task[None] | None = None
        self._began_ms: dict[int, int] = {}
        """Unit -> where its sound begins on the output's clock."""

    async def follow(self) -> None:
        try:
            async for event in self.session:
                self._write(event)
        finally:
            if self._playing is not None:
                self._playing.cancel()
                await asyncio.wait((self._playing,))

    # ---- out -------------------------------------------------------------------------------------------------------

    def _write(self, event: Event) -> None:
        match event:
            case Queued():
                text = f"{event.position} in the queue, about {event.estimate_s:.0f} s to go"
                self._tell("info", code="queued", message=text)
            case Opened():
                if event.speech:
                    self._playing = asyncio.create_task(self._paced.run(self._clock.now()))
                self._tell("session.started", session=self._told, client_event_id=self._start.event_id)
                if not event.speech:
                    self._tell("info", code="no_speech", message="this model does not speak; its words are told")
            case SoundDelta():
                self._began_ms.setdefault(event.unit, self._paced.end_ms)
                self._paced.add(self._spoken.take(read_pcm(event.pcm), last=event.last))
            case UnitOver():
                self._unit(event)
            case TurnEnded():
                if event.cancelled:
                    self._paced.drop()
                    self._spoken.reset()
            case Late():
                self._tell("info", code="late", message="the server is behind: some of the input was left out")
            case Restarted():
                text = "the engine was lost; the session goes on with what was said last"
                self._tell("info", code="engine_restarted", message=text)
            case Wrong():
                self.tell_error(event.error)
            case Closed():
                self._closed(event)
            case _:
                pass

    def _unit(self, event: UnitOver) -> None:
        if event.text:
            heard_ms = event.end_sample * 1000 // HEARD_RATE
            start = self._began_ms.pop(event.unit, heard_ms)
            end = max(self._paced.end_ms, start) if event.times.speech is not None else heard_ms + 1000
            self._tell("session.output_transcript.delta", delta=event.text, start_ms=start, end_ms=end)
        if event.unit % TOLD_UNITS == TOLD_UNITS - 1:
            ratio = round(event.kv_used / event.kv_limit, 4)
            usage = {"seconds": round(self.session.usage.seconds, 3)}
            self._tell("session.usage.updated", usage=usage, context_window={"usage_ratio": ratio})

    def _play(self, pcm: np.ndarray) -> None:
        delta = pybase64.b64encode(pcm.astype("<i2").tobytes()).decode()
        self._put({"type": "session.output_audio.delta", "delta": delta}, is_sound=True)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._put({"type": kind, "event_id": f"event_{uuid.uuid4().hex[:24]}", **fields})

    def _put(self, message: dict[str, Any], *, is_sound: bool = False) -> None:
        self.outbox.put(msgspec.json.encode(message).decode(), is_sound=is_sound)

    def tell_error(self, error: BaseException, event_id: str | None = None) -> None:
        _, body, _ = describe(error)
        told = msgspec.to_builtins(body.error) | {"client_event_id": event_id}
        self._tell("error", error=told, client_event_id=event_id)

    def _closed(self, event: Closed) -> None:
        self._paced.flush()
        if event.error is not None:
            self.tell_error(event.error)
        if event.reason == "shutting_down":
            self._tell("info", code="shutting_down", message="the server is shutting down")
        self.close_code = CLOSE_CODES.get(event.reason, 1000)
        self.outbox.is_ending = True
        usage = {"seconds": round(event.usage.seconds, 3)}
        reason = REASONS.get(event.reason, "expired")
        self._tell("session.closed", reason=reason, session=self._told, usage=usage)

    # ---- in --------------------------------------------------------------------------------------------------------

    def take(self, data: str | bytes) -> bool:
        """One message; whether it was good. What is wrong with it is told and has changed nothing."""
        try:
            self._do(wire.read_said(data))
        except SensoriumError as error:
            self.tell_error(error, wire.ident_of(data))
            return False
        return True

    def _do(self, said: wire.Said) -> None:
        session = self.session
        if isinstance(said, wire.CloseSession):
            session.finish() if session.is_open else session.end("stopped")
            return
        if not session.is_open:
            raise RequestError("wait for session.started before other commands", param="type")
        match said:
            case wire.AppendAudio():
                pcm = read_pcm(_bytes(said.audio, "audio"))
                session.check_audio(len(pcm) * HEARD_RATE // self._rate)
                session.send_audio(self._heard.take(pcm))
            case wire.AppendImage():
                session.send_frame(_bytes(said.image.rpartition(",")[2], "image"))
            case wire.Mute() | wire.Unmute():
                is_on = isinstance(said, wire.Mute)
                session.mute(is_on)
                kind = "muted" if is_on else "unmuted"
                self._tell(f"session.input_audio.{kind}", client_event_id=said.event_id)
            case wire.UpdateSession():
                wire.check_delegation(said.session.delegation, said.session.triggers)
                self._tell("session.updated", session=self._told, client_event_id=said.event_id)
            case wire.StartSession():
                raise RequestError("the session has started already", param="type")
            case _:
                self._append(said)

    def _append(self, said: wire.AppendInstructions | wire.AppendThinking | wire.AppendCommentary) -> None:
        if said.delegation_id is not None:
            raise NotFoundError("delegation_id: there is no such delegation", param="delegation_id")
        self.session.send_text(said.content, "content")
        if isinstance(said, wire.AppendCommentary):
            self.session.force_speak()
        heard_ms = self.session.heard * 1000 // HEARD_RATE
        match said:
            case wire.AppendInstructions():
                name = "instructions"
            case wire.AppendThinking():
                name = "thinking"
            case wire.AppendCommentary():
                name = "commentary"
        self._tell(f"session.{name}.appended", start_ms=heard_ms, end_ms=heard_ms, client_event_id=said.event_id)


def _bytes(text: str, param: str) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise RequestError(f"{param}: it is not valid base64", param=param) from None
