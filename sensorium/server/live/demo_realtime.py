"""The published demo's later protocol of full duplex, on /v1/realtime?mode=video or audio, in both its spellings.

The first message says which it is: session.update (with input_audio_buffer.append) or session.init (with input.append).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import msgspec
import pybase64
from starlette.types import Receive, Scope, Send

from sensorium.errors import RequestError, SensoriumError, UnsupportedError
from sensorium.media.wav import read_wav
from sensorium.server.errors import describe
from sensorium.server.live import demo_talk as demo
from sensorium.server.live.clock import Clock
from sensorium.server.live.events import (
    Closed,
    Event,
    Opened,
    Queued,
    Restarted,
    SoundDelta,
    TurnEnded,
    UnitOver,
    Wrong,
)
from sensorium.server.live.holding import hold
from sensorium.server.live.service import LiveService
from sensorium.server.live.session import LiveSession
from sensorium.server.live.sockets import CLOSE_CODES, Socket, accepted, answer_first, decoded
from sensorium.server.served import Served

Mode = Literal["video", "audio"]
RATE = 16_000


class Message(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    pass


class Settings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Of session.update."""

    instructions: str | None = None
    max_slice_nums: int = 1
    ref_audio: str | None = None
    """A WAVE file at 16 kHz, as tts_ref_audio."""
    tts_ref_audio: str | None = None


class Update(Message, tag="session.update"):
    session: Settings


class Voice(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    ref_audio_base64: str | None = None
    tts_ref_audio_base64: str | None = None


class Payload(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Of session.init."""

    system_prompt: str | None = None
    instructions: str | None = None
    config: demo.Config = msgspec.field(default_factory=demo.Config)
    voice: Voice = msgspec.field(default_factory=Voice)
    max_slice_nums: int = 1
    use_tts: bool = True
    generate_audio: bool = True


class Init(Message, tag="session.init"):
    payload: Payload


class Heard(Message, tag="input_audio_buffer.append"):
    audio: str
    video_frames: list[str] | None = None
    force_listen: bool = False
    max_slice_nums: int | None = None


class Input(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    audio: str
    video_frames: list[str] | None = None
    force_listen: bool = False
    max_slice_nums: int | None = None


class Append(Message, tag="input.append"):
    input: Input


class Close(Message, tag="session.close"):
    reason: str | None = None


Said = Update | Init | Heard | Append | Close
_SAID: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)
_REASONS = {"stopped": "stopped", "expired": "timeout", "idle": "timeout", "shutting_down": "server_shutdown"}
"""Why a session ended, in the demo's words, where it has one."""


def _prepare(said: Said) -> demo.Prepare:
    """Raises RequestError where that is no beginning of a session."""
    if isinstance(said, Update):
        given = said.session
        return demo.Prepare(
            system_prompt=given.instructions,
            ref_audio_base64=None if given.ref_audio is None else _floats(given.ref_audio, "session.ref_audio"),
            tts_ref_audio_base64=given.tts_ref_audio,
            max_slice_nums=given.max_slice_nums,
        )
    if not isinstance(said, Init):
        raise RequestError("the first message is session.init or session.update", param="type")
    given = said.payload
    speaks = given.use_tts and given.generate_audio and given.config.generate_audio
    return demo.Prepare(
        system_prompt=given.instructions if given.system_prompt is None else given.system_prompt,
        config=msgspec.structs.replace(given.config, generate_audio=speaks),
        ref_audio_base64=given.voice.ref_audio_base64,
        tts_ref_audio_base64=given.voice.tts_ref_audio_base64,
        max_slice_nums=given.max_slice_nums,
    )


class RealtimeTalk(demo.DemoTalk):
    """`follow` once, to the end; `take` for every message."""

    def __init__(
        self, session: LiveSession, prepare: demo.Prepare, clock: Clock, mode: Mode, *, is_early: bool
    ) -> None:
        """is_early: the spelling with session.update."""
        super().__init__(session, prepare, clock)
        self._mode = mode
        self._is_early = is_early

    def _write(self, event: Event) -> None:
        match event:
            case Queued():
                self._tell_queue(event, "session.")
            case Opened():
                if self._waited:
                    self._tell("session.queue_done")
                more: dict[str, Any] = {"mode": "full_duplex", "metrics": {}}
                self._tell_of("session.created", **({"prompt_length": self._prompt_length} if self._is_early else more))
            case UnitOver():
                self._unit(event)
            case Wrong():
                self.tell_error(event.error)
            case SoundDelta() | TurnEnded():
                super()._write(event)
            case Restarted():
                said = "the engine was started again: the session goes on without what it has heard"
                self._tell("error", error={"code": "engine_restarted", "message": said, "type": "server_error"})
            case Closed():
                self._end(event)
            case _:
                pass

    def _unit(self, event: UnitOver) -> None:
        pcm = bytes(self._pcm.pop(event.unit, b""))
        audio = demo.float_sound(pcm)
        listens = event.decision == "listen"
        if self._is_early:
            if listens:
                self._tell("response.listen", kv_cache_length=event.kv_used)
                return
            told = {"text": event.text, "audio": audio, "end_of_turn": event.text_end}
            self._tell("response.output_audio.delta", **told, kv_cache_length=event.kv_used)
            return
        metrics = {"kv_cache_length": event.kv_used, "cost_all_ms": round(event.times.total * 1000, 1)}
        place: dict[str, Any] = {"input_id": f"input_{event.unit}", "metrics": metrics}
        if event.turn is not None:
            place["response_id"] = f"resp_{event.turn}"
        if listens:
            self._tell_output("listen", place)
        if event.text or (event.text_end and not pcm):
            self._tell_output("text", place, text=event.text, end_of_turn=event.text_end)
        if pcm:
            self._tell_output("audio", place, audio=audio, end_of_turn=event.text_end)

    def _tell_output(self, output: str, place: dict[str, Any], **fields: Any) -> None:
        told = {"type": "response.output.delta", "kind": output, "session_id": self.session.id, **place, **fields}
        self.outbox.put(msgspec.json.encode(told).decode())

    def _tell_of(self, kind: str, **fields: Any) -> None:
        self._tell(kind, session_id=self.session.id, **fields)

    def _end(self, event: Closed) -> None:
        self.close_code = CLOSE_CODES.get(event.reason, 1000)
        self.outbox.is_ending = True
        if event.error is not None:
            self.tell_error(event.error)
        reason = "error" if event.error is not None else _REASONS.get(event.reason, event.reason)
        self._tell_of("session.closed", reason="user_stop" if reason == "stopped" and not self._is_early else reason)

    def tell_error(self, error: SensoriumError) -> None:
        self.outbox.put(_error(error))

    def take(self, data: str | bytes) -> bool:
        try:
            self._follow(_read(data))
        except SensoriumError as error:
            self.tell_error(error)
            return False
        return True

    def _follow(self, said: Said) -> None:
        if isinstance(said, Close):
            self.session.end("stopped")
            return
        if isinstance(said, Update | Init):
            raise RequestError("the session has begun already", param="type")
        given = said.input if isinstance(said, Append) else said
        if self._mode == "audio" and given.video_frames:
            raise RequestError("video_frames: mode=audio takes none", param="video_frames")
        if not self.session.is_open:
            raise RequestError("wait for session.created before other messages", param="type")
        self._hear(given, given.audio, given.video_frames, names=("audio", "video_frames"))


class RealtimeDemoDoor:
    """The endpoint, as raw ASGI."""

    def __init__(self, served: Served, service: LiveService) -> None:
        self._served = served
        self._service = service

    async def __call__(self, mode: str, scope: Scope, receive: Receive, send: Send) -> None:
        if mode not in ("video", "audio"):
            reason = "mode: is video or audio; turns are at /ws/chat, and at /v1/realtime without mode"
            raise UnsupportedError(reason, param="mode")
        self._served.client().live("")
        socket, key = await accepted(scope, receive, send, self._service.clock, demo.MAX_MESSAGE)
        converse = partial(self._converse, socket, key, mode)
        # As in the earlier protocol: what has begun waits, so that nobody waits in vain.
        greeting = '{"type":"session.queue_done"}'
        await answer_first(socket, self._service.seats, key, converse, "no session.init", greeting)

    async def _converse(self, socket: Socket, key: str, mode: Mode, first: str | bytes) -> None:
        try:
            said = _read(first)
            prepare = _prepare(said)
            session = await self._service.open(demo.options_of(prepare, key))
        except SensoriumError as error:
            await socket.refuse(error, _error(error))
            return
        talk = RealtimeTalk(session, prepare, self._service.clock, mode, is_early=isinstance(said, Update))
        await hold(talk, self._service, socket)


def _read(data: str | bytes) -> Said:
    return decoded(_SAID, data)


def _error(error: SensoriumError) -> str:
    status, body, _ = describe(error)
    told = {"code": body.error.code, "message": body.error.message, "param": body.error.param}
    kind = "client_error" if status < 500 and status != 429 else "server_error"
    return msgspec.json.encode({"type": "error", "error": {**told, "type": kind}}).decode()


def _floats(text: str, param: str) -> str:
    """Base64 of a WAVE file at 16 kHz -> that of its samples."""
    file = read_wav(demo.binary_of(text, param))
    if file is None or file.rate != RATE or file.channels != 1:
        raise RequestError(f"{param}: must be a mono WAVE file at 16 kHz", param=param)
    return pybase64.b64encode(file.read(0, file.frames)[:, 0].astype("<f4").tobytes()).decode()
