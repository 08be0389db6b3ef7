"""One session of /v1/duplex, which may outlive its socket: events become messages, messages become calls."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from sensorium.errors import RequestError, SensoriumError
from sensorium.server.errors import describe
from sensorium.server.live import duplex_wire as wire
from sensorium.server.live.clock import Clock
from sensorium.server.live.events import (
    Closed,
    Event,
    Late,
    Muted,
    Opened,
    Paused,
    Queued,
    Restarted,
    SoundDelta,
    TextDelta,
    TurnEnded,
    TurnStarted,
    UnitOver,
    Wrong,
)
from sensorium.server.live.outbox import Outbox
from sensorium.server.live.session import LiveSession
from sensorium.server.live.sockets import CLOSE_CODES
from sensorium.server.live.sound import SPOKEN_RATE, Incoming, Resampled, read_pcm


class Talk:
    """`follow` once, for the whole session; `take` for every message of whichever socket it has."""

    def __init__(self, session: LiveSession, start: wire.Start, model: str, clock: Clock) -> None:
        self.session = session
        self.outbox = Outbox(clock)
        self.close_code = 1000
        self._model = model
        self._clock = clock
        self._rate_out = start.audio.output
        self._incoming = Incoming(start.audio.input)
        self._outgoing = Resampled(SPOKEN_RATE, self._rate_out or SPOKEN_RATE)
        self._speech = False
        self._seq = self._audio_seq = self._out = 0
        self._played: int | None = None
        self._jumps = False

    async def follow(self, token: str) -> None:
        """Write down the session to its end. token: for taking it up again."""
        async for event in self.session:
            self._write(event, token)

    # ---- out -------------------------------------------------------------------------------------------------------

    def _write(self, event: Event, token: str) -> None:
        match event:
            case Queued():
                self.say("queued", position=event.position, eta_s=round(event.estimate_s, 1))
            case Opened():
                self._speech = event.speech
                self.say("ready", **self.ready(token, resumed=False))
            case TurnStarted():
                self._tell("turn", event="start", id=event.turn)
            case TextDelta():
                self._tell("text", n=event.unit, turn=event.turn, delta=event.text)
            case SoundDelta():
                self._sound(event)
            case UnitOver():
                place = self._incoming.position(event.end_sample)
                self._tell("unit", **wire.unit_fields(event, place, self._out))
            case TurnEnded():
                if event.cancelled:
                    self.outbox.drop_sound()
                    self._outgoing.reset()
                    self._jumps = True
                self._tell("turn", event="cancelled" if event.cancelled else "end", id=event.turn)
            case Late():
                if event.frames:
                    self._notice(
                        "frames_dropped",
                        "pictures were left out: too many came, or the server is behind",
                        count=event.frames,
                    )
                if event.dropped_s:
                    dropped = round(event.dropped_s * 1000)
                    self._notice("late", "sound was left out: the server is behind", dropped_ms=dropped)
            case Paused():
                self._notice("paused" if event.on else "resumed", "")
            case Restarted():
                self._notice("engine_restarted", "the engine was lost; the session goes on with what was said last")
            case Muted():
                self._notice("muted" if event.on else "unmuted", "")
            case Wrong():
                self.tell_error(event.error)
            case Closed():
                self._bye(event)

    def say(self, kind: str, **fields: Any) -> None:
        """A message without a number, which is never sent again."""
        self.outbox.put(msgspec.json.encode({"type": kind, **fields}).decode())

    def _tell(self, kind: str, **fields: Any) -> None:
        message = {"type": kind, "seq": self._seq, **fields}
        self.outbox.put(msgspec.json.encode(message).decode(), number=self._seq)
        self._seq += 1

    def _notice(self, code: str, message: str, **fields: Any) -> None:
        self._tell("notice", code=code, message=message, **fields)

    def tell_error(self, error: BaseException, *, fatal: bool = False) -> None:
        _, body, _ = describe(error)
        detail = body.error
        self._tell("error", code=detail.code, message=detail.message, param=detail.param, fatal=fatal)

    def _sound(self, event: SoundDelta) -> None:
        if self._rate_out is None:
            return
        pcm = self._outgoing.take(read_pcm(event.pcm), last=event.last)
        flags = (wire.JUMPS if self._jumps else 0) | (wire.LAST if event.last else 0)
        if not len(pcm) and not event.last:
            return
        data = wire.sound_frame(flags, self._audio_seq, self._out, pcm.astype("<i2").tobytes())
        self.outbox.put(data, is_sound=True, number=self._audio_seq)
        self._jumps = False
        self._audio_seq += 1
        self._out += len(pcm)

    def _bye(self, event: Closed) -> None:
        if event.error is not None:
            self.tell_error(event.error, fatal=True)
        heard = self._incoming.position(event.usage.heard_samples)
        self.close_code = CLOSE_CODES.get(event.reason, 1000)
        # Before the message, so that whoever empties the box finds both.
        self.outbox.is_ending = True
        self._tell("bye", reason=event.reason, usage=wire.usage_fields(event.usage, heard, self._out, self._played))

    def ready(self, token: str, *, resumed: bool) -> dict[str, Any]:
        """The fields of `ready`."""
        limits, session = self.session.limits, self.session
        return {
            "session": session.id,
            "resume_token": token,
            "resumed": resumed,
            "model": self._model,
            "unit_ms": 1000,
            "audio": {"in": self._incoming.rate, "out": self._rate_out if self._speech else None},
            "seq": self._seq,
            "audio_seq": self._audio_seq,
            "in_samples": self._incoming.expected,
            "limits": {
                "message_bytes": wire.MAX_MESSAGE,
                "frame_bytes": wire.MAX_MESSAGE - wire.HEADER.size,
                "queue_units": 3,
                "max_s": limits.max_s,
                "idle_s": limits.idle_s,
                "pause_s": limits.pause_s,
                "resume_s": limits.resume_s,
                "max_len": session.max_len,
            },
            "capabilities": {"speech": self._speech, "video": True, "text": True, "kinds": [1, 2, 3, 5]},
        }

    def take_up(self, resume: wire.Resume, token: str) -> str:
        """Another socket goes on from there; the message that it begins with."""
        again = {"seq": min(resume.seq, self._seq), "audio_seq": min(resume.audio_seq, self._audio_seq)}
        whole = self.outbox.rewind(resume.seq, resume.audio_seq)
        if not whole:
            self._notice("replay_incomplete", "some of what was missed is not there any more")
        ready = self.ready(token, resumed=True) | again
        return msgspec.json.encode({"type": "ready", **ready}).decode()

    # ---- in --------------------------------------------------------------------------------------------------------

    def take(self, data: str | bytes) -> bool:
        """One message; whether it was good. What is wrong with it is told and has changed nothing."""
        try:
            if isinstance(data, bytes):
                self._media(wire.read_frame(data))
            else:
                self._control(wire.read_said(data))
        except SensoriumError as error:
            self.tell_error(error)
            return False
        return True

    def _media(self, frame: wire.Frame) -> None:
        session = self.session
        if not session.is_open:
            raise RequestError("a frame came before `ready`, or after the end", param="frame")
        if frame.kind != wire.SOUND:
            session.send_frame(bytes(frame.payload))
            return
        pcm = read_pcm(frame.payload)
        session.check_audio(len(pcm) * 16_000 // self._incoming.rate)
        samples, filled_ms = self._incoming.take(frame.position, pcm, jumps=bool(frame.flags & wire.JUMPS))
        if filled_ms:
            self._notice("gap", "a gap in the sound was filled with silence", ms=filled_ms)
        if frame.flags & wire.LISTEN:
            session.force_listen()
        session.send_audio(np.ascontiguousarray(samples))

    def _control(self, said: wire.Said) -> None:
        session = self.session
        match said:
            case wire.Ping():
                self.say("pong", t=said.t, server_t=self._clock.now())
                return
            case wire.Stop():
                session.end("stopped")
                return
            case _:
                pass
        if not session.is_open:
            raise RequestError("until `ready` has come, only ping and stop may be sent", param="type")
        match said:
            case wire.Update():
                session.update(*wire.updated(session.settings, session.frames, said))
            case wire.Interrupt():
                session.interrupt()
            case wire.Mute():
                session.mute(said.on)
            case wire.Text():
                session.send_text(said.text)
            case wire.Pause():
                session.pause()
            case wire.Played():
                self._played = said.samples
            case wire.Resume():
                if said.session is not None:
                    raise RequestError("session: this connection has its session already", param="session")
                session.resume()
            case wire.Start():
                raise RequestError("the session has started already", param="type")
