"""The doors that hold sessions, each with its way to begin, to show that it lives, and to be wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from live_sessions.raw import Raw
from live_sessions.tools import HEADER, RATE, noise

Message = dict[str, Any] | str | bytes


@dataclass(frozen=True)
class Door:
    """greeting: types that come before the client says anything; begin: what it says then, and what that is answered.

    alive: something harmless, and the type of its answer. sound: samples at 16 kHz as messages of the door.
    """

    name: str
    path: str
    greeting: tuple[str, ...]
    begin: dict[str, Any]
    began: str
    alive: dict[str, Any]
    answer: str
    sound: Callable[[np.ndarray], Message]
    max_message: int
    bad_sound: tuple[Message, ...]
    then: tuple[str, ...] = ()
    """What follows the answer, of a model that does not speak."""

    def open(self, peer: Raw, **changes: Any) -> dict[str, Any]:
        """Begin a session; its answer."""
        for kind in self.greeting:
            assert peer.next()["type"] == kind
        begin = dict(self.begin)
        place = next((begin[name] for name in ("session",) if isinstance(begin.get(name), dict)), None)
        if place is None:
            begin |= changes
        else:
            begin["session"] = {**place, **changes}
        peer.say(begin)
        answer = peer.until(self.began)
        for kind in self.then:
            assert peer.next()["type"] == kind
        return answer

    def check(self, peer: Raw) -> None:
        """That the session still answers; errors before that are failures."""
        peer.say(self.alive)
        while (event := peer.next())["type"] != self.answer:
            assert event["type"] != "error", event


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def appended(kind: str, key: str, data: bytes | str, **more: Any) -> str:
    return json.dumps({"type": kind, key: data if isinstance(data, str) else b64(data), **more})


def wrong_base64(kind: str, key: str) -> tuple[str, ...]:
    return (
        appended(kind, key, "!!"),
        appended(kind, key, b"odd"),
        json.dumps({"type": kind, key: 7}),
        json.dumps({"type": kind}),
    )


def floats(pcm: np.ndarray) -> bytes:
    return (pcm / 32768).astype("<f4").tobytes()


def int16(pcm: np.ndarray) -> bytes:
    return pcm.astype("<i2").tobytes()


AUDIO_IN: dict[str, Any] = {"format": {"type": "audio/pcm", "rate": RATE}, "turn_detection": None}
REALTIME = Door(
    "realtime",
    "/v1/realtime",
    ("session.created",),
    {
        "type": "session.update",
        "session": {"type": "realtime", "output_modalities": ["text"], "audio": {"input": AUDIO_IN}},
    },
    "session.updated",
    {"type": "session.update", "session": {"type": "realtime"}},
    "session.updated",
    lambda pcm: appended("input_audio_buffer.append", "audio", int16(pcm)),
    16 << 20,
    wrong_base64("input_audio_buffer.append", "audio"),
)
LIVE = Door(
    "live",
    "/v1/live/sessions",
    (),
    {
        "type": "session.start",
        "session": {
            "model": "tiny",
            "audio": {"format": {"type": "audio/pcm", "rate": RATE}},
            "sensorium": {"listen_bias": 1e6, "force_listen_units": 10, "silence": "omit"},
        },
    },
    "session.started",
    {"type": "session.update", "session": {}},
    "session.updated",
    lambda pcm: appended("session.input_audio.append", "audio", int16(pcm)),
    4 << 20,
    wrong_base64("session.input_audio.append", "audio"),
    ("info",),
)
DUPLEX = Door(
    "duplex",
    "/v1/duplex",
    (),
    {"type": "start", "listen_bias": 1e6, "force_listen_units": 10},
    "ready",
    {"type": "ping"},
    "pong",
    lambda pcm: HEADER.pack(1, 0, 0, 0, 0) + int16(pcm),
    1 << 20,
    (
        b"",
        HEADER.pack(1, 0, 0, 0, 0)[:15],
        HEADER.pack(1, 0, 0, 0, 0) + b"odd",
        HEADER.pack(4, 0, 0, 0, 0) + b"opus",
        HEADER.pack(9, 0, 0, 0, 0),
        HEADER.pack(1, 255, 0, 0, 0),
    ),
)
_CHUNK = "audio_chunk"
DEMO = Door(
    "demo",
    "/ws/duplex/adx_1",
    ("queue_done",),
    {"type": "prepare", "config": {"force_listen_count": 1000}},
    "prepared",
    {"type": "interrupt"},
    "interrupted",
    lambda pcm: appended(_CHUNK, "audio_base64", floats(pcm)),
    8 << 20,
    (
        *wrong_base64(_CHUNK, "audio_base64"),
        appended(_CHUNK, "audio_base64", np.full(100, np.nan, "<f4").tobytes()),
        appended(_CHUNK, "audio_base64", np.full(100, np.inf, "<f4").tobytes()),
        appended(_CHUNK, "audio_base64", floats(noise(0, 160)), frame_base64_list=["!!"]),
        appended(_CHUNK, "audio_base64", floats(noise(0, 160)), max_slice_nums=99),
    ),
)
VLLM = Door(
    "vllm",
    "/v1/realtime",
    ("session.created",),
    {"type": "session.update", "model": "nobody"},
    "error",
    {"type": "input_audio_buffer.commit"},
    "error",
    lambda pcm: appended("input_audio_buffer.append", "audio", int16(pcm)),
    16 << 20,
    wrong_base64("input_audio_buffer.append", "audio"),
)
"""Its errors are all that this model, which writes down no speech, can answer; they show that the session lives."""
HALF = Door(
    "half",
    "/ws/half_duplex/hdx_1",
    ("queue_done",),
    {"type": "prepare", "config": {"tts": {"enabled": False}}},
    "prepared",
    {"type": "prepare"},
    "error",
    lambda pcm: appended(_CHUNK, "audio_base64", floats(pcm)),
    8 << 20,
    (*wrong_base64(_CHUNK, "audio_base64"), appended(_CHUNK, "audio_base64", np.full(100, np.nan, "<f4").tobytes())),
)
"""It says nothing before somebody has spoken: its errors show that it lives."""
LIVING = (LIVE, DUPLEX, DEMO)
DOORS = (REALTIME, *LIVING)
SPOKEN = (*DOORS, HALF, VLLM)
