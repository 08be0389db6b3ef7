"""The published demo's protocol of full duplex: a second of sound in a message, and a result for each."""

from __future__ import annotations

import time
from typing import Any, Protocol

import msgspec
import numpy as np
import pybase64

from sensorium.errors import RequestError, SensoriumError, UnsupportedError
from sensorium.params import LiveSettings
from sensorium.server.live.clock import Clock
from sensorium.server.live.events import (
    Closed,
    Event,
    Opened,
    Paused,
    Queued,
    Restarted,
    SoundDelta,
    TurnEnded,
    UnitOver,
    Wrong,
)
from sensorium.server.live.opening import LiveOptions
from sensorium.server.live.outbox import Outbox
from sensorium.server.live.session import LiveSession
from sensorium.server.live.sockets import CLOSE_CODES, decoded
from sensorium.server.live.sound import SPOKEN_RATE

MAX_MESSAGE = 8 << 20
MAX_FRAMES = 4
MAX_REFERENCE_S = 30
SAMPLES_PER_CODE = 960
_FIXED: dict[str, Any] = {
    "ls_mode": "explicit",
    "decode_mode": "sampling",
    "text_repetition_window_size": 512,
    "listen_prob_scale": 1.0,
    "listen_top_k": None,
    "tts_temperature": 0.8,
    "chunk_ms": 1000,
    "sample_rate": 16_000,
}
"""What a client may say of the demo's options that are not to be had in other values here."""


class Config(msgspec.Struct, forbid_unknown_fields=True):
    generate_audio: bool = True
    force_listen_count: int | None = None
    max_new_speak_tokens_per_chunk: int = 20
    temperature: float = 0.7
    top_k: int = 20
    top_p: float = 0.8
    text_repetition_penalty: float = 1.05
    length_penalty: float = 1.1
    ls_mode: Any = "explicit"
    decode_mode: Any = "sampling"
    text_repetition_window_size: Any = 512
    listen_prob_scale: Any = 1.0
    listen_top_k: Any = None
    tts_temperature: Any = 0.8
    chunk_ms: Any = 1000
    sample_rate: Any = 16_000


class Prepare(msgspec.Struct, tag="prepare", forbid_unknown_fields=True):
    system_prompt: str | None = None
    config: Config = msgspec.field(default_factory=Config)
    ref_audio_path: str | None = None
    ref_audio_base64: str | None = None
    tts_ref_audio_base64: str | None = None
    max_slice_nums: int = 1
    deferred_finalize: bool = True


class AudioChunk(msgspec.Struct, tag="audio_chunk", forbid_unknown_fields=True):
    audio_base64: str
    frame_base64_list: list[str] | None = None
    force_listen: bool = False
    max_slice_nums: int | None = None


class Pause(msgspec.Struct, tag="pause"):
    timeout: float | None = None


class Resume(msgspec.Struct, tag="resume"):
    pass


class Stop(msgspec.Struct, tag="stop"):
    pass


class Interrupt(msgspec.Struct, tag="interrupt"):
    pass


class Diagnostic(msgspec.Struct, tag="client_diagnostic"):
    """For the demo's own log; not kept."""


Said = Prepare | AudioChunk | Pause | Resume | Stop | Interrupt | Diagnostic
_SAID: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)


def read_said(data: str | bytes) -> Said:
    return decoded(_SAID, data)


def options_of(prepare: Prepare, key: str) -> LiveOptions:
    """Raises what is wrong or not served, by its field."""
    config = prepare.config
    if prepare.ref_audio_path is not None:
        reason = "ref_audio_path: files of the server are not read; send ref_audio_base64"
        raise UnsupportedError(reason, param="ref_audio_path")
    for name, value in _FIXED.items():
        if getattr(config, name) != value:
            raise UnsupportedError(f"config.{name}: only {value!r} is served", param=f"config.{name}")
    settings = LiveSettings(
        instructions=prepare.system_prompt,
        force_listen_units=config.force_listen_count,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        repetition_penalty=config.text_repetition_penalty,
        length_penalty=config.length_penalty,
        max_tokens=config.max_new_speak_tokens_per_chunk,
    )
    if prepare.tts_ref_audio_base64 is not None:
        reason = "tts_ref_audio_base64: sessions speak in a voice of the server's; leave it out"
        raise UnsupportedError(reason, param="tts_ref_audio_base64")
    reference = prepare.ref_audio_base64
    return LiveOptions(
        settings,
        sound=config.generate_audio,
        max_frames=MAX_FRAMES,
        max_slices=slices(prepare.max_slice_nums),
        key=key,
        reference=None if reference is None else _recording(reference, "ref_audio_base64"),
    )


def slices(given: int) -> int:
    if not 1 <= given <= 9:
        raise RequestError(f"max_slice_nums must be 1 to 9, not {given}", param="max_slice_nums")
    return given


def samples_of(text: str, param: str) -> np.ndarray:
    """float32 [n] of base64. Raises RequestError for what is none, or not finite."""
    data = binary_of(text, param)
    if len(data) % 4:
        raise RequestError(f"{param}: float32 samples take a multiple of four bytes", param=param)
    samples = np.frombuffer(data, "<f4")
    if not np.isfinite(samples).all():
        raise RequestError(f"{param}: it holds NaN or infinity", param=param)
    return samples


def binary_of(text: str, param: str) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        raise RequestError(f"{param}: it is not valid base64", param=param) from None


def float_sound(pcm: bytes) -> str:
    """16-bit samples as base64 of float32."""
    return pybase64.b64encode((np.frombuffer(pcm, "<i2").astype("<f4") / 32768).astype("<f4").tobytes()).decode()


def _recording(text: str, param: str) -> np.ndarray:
    samples = samples_of(text, param)
    if not 0.2 <= len(samples) / 16_000 <= MAX_REFERENCE_S:
        raise RequestError(f"{param}: a voice takes 0.2 to {MAX_REFERENCE_S} s of sound", param=param)
    return samples


class Chunk(Protocol):
    """What a message of sound says beside it."""

    @property
    def force_listen(self) -> bool: ...

    @property
    def max_slice_nums(self) -> int | None: ...


class DemoTalk:
    """`follow` once, to the end; `take` for every message."""

    def __init__(self, session: LiveSession, prepare: Prepare, clock: Clock) -> None:
        self.session = session
        self.outbox = Outbox(clock)
        self.close_code = 1000
        self._prompt_length = len(prepare.system_prompt or "")
        self._pcm: dict[int, bytearray] = {}
        self._waited = False

    async def follow(self) -> None:
        async for event in self.session:
            self._write(event)

    def _write(self, event: Event) -> None:
        match event:
            case Queued():
                self._tell_queue(event)
            case Opened():
                if self._waited:
                    self._tell("queue_done")
                self._tell("prepared", prompt_length=self._prompt_length)
            case SoundDelta():
                self._pcm.setdefault(event.unit, bytearray()).extend(event.pcm)
            case UnitOver():
                self._result(event)
            case TurnEnded():
                if event.cancelled:
                    self._pcm.clear()
            case Paused():
                self._tell("paused", timeout=self.session.pause_s) if event.on else self._tell("resumed")
            case Restarted():
                self._tell("engine_restarted")
            case Wrong():
                self.tell_error(event.error)
            case Closed():
                self._closed(event)
            case _:
                pass

    def _tell_queue(self, event: Queued, prefix: str = "") -> None:
        kind, self._waited = "queue_update" if self._waited else "queued", True
        told = {"position": event.position, "estimated_wait_s": round(event.estimate_s, 1)}
        self._tell(prefix + kind, **told, queue_length=event.position, ticket_id=self.session.id)

    def _result(self, event: UnitOver) -> None:
        pcm = bytes(self._pcm.pop(event.unit, b""))
        is_listen = event.decision == "listen"
        times = event.times
        self._tell(
            "result",
            is_listen=is_listen,
            text=event.text,
            audio_data=float_sound(bytes(2 * SPOKEN_RATE) if is_listen else pcm),
            end_of_turn=event.text_end,
            current_time=event.unit + 1,
            cost_llm_ms=_ms(times.prefill + times.decode),
            cost_tts_prep_ms=0.0,
            cost_tts_ms=_ms(times.speech or 0.0),
            cost_token2wav_ms=0.0,
            cost_all_ms=_ms(times.total),
            n_tokens=event.num_tokens,
            n_tts_tokens=len(pcm) // 2 // SAMPLES_PER_CODE,
            server_send_ts=time.time(),
            wall_clock_ms=_ms(times.total),
            kv_cache_length=event.kv_used,
        )

    def _closed(self, event: Closed) -> None:
        self.close_code = CLOSE_CODES.get(event.reason, 1000)
        self.outbox.is_ending = True
        if event.error is not None:
            self.tell_error(event.error)
        elif event.reason == "stopped":
            self._tell("stopped")
        else:
            self._tell("timeout", reason=event.reason)

    def _tell(self, kind: str, **fields: Any) -> None:
        self.outbox.put(msgspec.json.encode({"type": kind, **fields}).decode())

    def tell_error(self, error: SensoriumError) -> None:
        self._tell("error", error=error.message[:1000])

    def take(self, data: str | bytes) -> bool:
        try:
            self._do(read_said(data))
        except SensoriumError as error:
            self.tell_error(error)
            return False
        return True

    def _do(self, said: Said) -> None:
        session = self.session
        match said:
            case Stop():
                session.end("stopped")
            case Diagnostic():
                pass
            case _ if not session.is_open:
                raise RequestError("wait for `prepared` before other messages")
            case AudioChunk():
                self._hear(said, said.audio_base64, said.frame_base64_list)
            case Pause():
                session.pause(said.timeout)
            case Resume():
                session.resume()
            case Interrupt():
                session.interrupt()
                self._tell("interrupted")
            case Prepare():
                raise RequestError("the session is prepared already")

    def _hear(
        self,
        said: Chunk,
        audio: str,
        frames: list[str] | None,
        *,
        names: tuple[str, str] = ("audio_base64", "frame_base64_list"),
    ) -> None:
        """names: those fields' own, for errors."""
        session = self.session
        samples = samples_of(audio, names[0])
        pictures = [binary_of(frame, names[1]) for frame in frames or ()]
        session.check_audio(len(samples))
        if said.max_slice_nums is not None:
            session.update(session.settings, MAX_FRAMES, slices(said.max_slice_nums))
        for picture in pictures:
            session.send_frame(picture)
        if said.force_listen:
            session.force_listen()
        session.send_audio((np.minimum(np.maximum(samples, -1), 1) * 32767).astype(np.int16))


def _ms(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1000, 1)
