"""The part of EngineClient that opens speeches and keeps voices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np

from sensorium.engine.link import Link
from sensorium.engine.protocol import AddVoice, OpenSpeech, RemoveVoice
from sensorium.engine.speech_client import Speech, SpeechPlaces
from sensorium.engine.stream import Stream, running_loop
from sensorium.errors import RequestError
from sensorium.types import SpeechOptions, SpeechRule, SpeechSampling


def _nothing() -> None:
    """Where nothing has to be free."""


class SpeechDoor:
    """What it shares with the rest of the client is declared here, and made there."""

    _link: Link
    _lock: threading.Lock
    _ids: Iterator[int]
    _streams: dict[str, Stream]
    _others: set[str]
    """Streams that are neither requests nor sessions."""
    _speech: SpeechPlaces

    def _send_abort(self, request_id: str) -> None:
        raise NotImplementedError

    def _refuse_if_ending(self) -> None:
        raise NotImplementedError

    def _forget(self, request_id: str) -> Stream | None:
        raise NotImplementedError

    def open_speech(
        self,
        rule: SpeechRule,
        sampling: SpeechSampling | None = None,
        *,
        sound: bool = False,
        voice: str = "default",
        speech_id: str | None = None,
    ) -> Speech:
        """Open a speech: a slot of the speech LM for calls under one rule. Returns at once.

        sampling: None is the checkpoint's. sound: calls end in sound of `voice`, not in codes. Raises UnsupportedError
        where no speech LM is loaded, or no codec; NotFoundError for the voice; BusyError when all speech_slots are
        taken; RequestError; or EngineDeadError.
        """
        options = SpeechOptions(voice if sound else None, rule, sampling)
        self._speech.check(options)
        speech_id = speech_id or f"speech-{next(self._ids)}"
        speech = Speech(speech_id, self._link.send, self._send_abort, running_loop(), sound)
        self._open_other(speech, OpenSpeech(speech_id, options), lambda: self._speech.take(speech_id))
        return speech

    def _change_speech(self, session_id: str, options: SpeechOptions | None) -> None:
        with self._lock:
            self._speech.change(session_id, options)

    # ---- voices ----------------------------------------------------------------------------------------------------

    @property
    def voices(self) -> tuple[str, ...]:
        """The names that speech may be asked in."""
        return tuple(self._speech.voices)

    @property
    def can_sound(self) -> bool:
        """Whether speech can become sound here."""
        return self._speech.can_sound

    @property
    def num_speaking(self) -> int:
        """Requests, sessions and speeches that hold a slot of the speech LM."""
        return self._speech.num_held

    @property
    def can_clone(self) -> bool:
        """Whether recordings can become voices here."""
        return self._speech.can_clone

    def check_cloning(self, place: str) -> None:
        """Raises UnsupportedError naming `place` where they cannot."""
        self._speech.check_cloning(place)

    def add_voice(self, name: str, samples: np.ndarray, rate: int) -> None:
        """Make a voice of a recording, floats [S] or [S, channels] of at least 0.2 s, better 5 to 10; wait for it.

        A voice of that name is replaced, for those who begin to speak later. Raises MediaError, RequestError, and
        UnsupportedError where no voices can be made.
        """
        for event in self._make_voice(name, samples, rate):
            self._speech.added(name, event)

    async def aadd_voice(self, name: str, samples: np.ndarray, rate: int) -> None:
        async for event in self._make_voice(name, samples, rate):
            self._speech.added(name, event)

    def _make_voice(self, name: str, samples: np.ndarray, rate: int) -> Stream:
        request_id = f"voice-{next(self._ids)}"
        message = self._speech.recording(request_id, name, samples, rate)
        stream = Stream(request_id, self._send_abort, running_loop())
        self._open_other(stream, message)
        return stream

    def remove_voice(self, name: str) -> None:
        """Nobody new speaks with it. Raises NotFoundError."""
        self._speech.check_voice(name)
        del self._speech.voices[name]
        self._link.send(RemoveVoice(name))

    def _open_other(self, stream: Stream, message: OpenSpeech | AddVoice, take: Callable[[], None] = _nothing) -> None:
        """Send what is neither a request nor a session, and belongs to a stream. take: what it needs, or refuses."""
        self._refuse_if_ending()
        name = stream.request_id
        with self._lock:
            if name in self._streams:
                raise RequestError(f"speech id {name!r} is in use", param="speech_id")
            take()
            self._others.add(name)
            self._streams[name] = stream
        try:
            self._link.send(message)
        except BaseException:
            with self._lock:
                self._forget(name)
            raise
