"""An open speech as its caller sees it: text with hidden states in, codes or sound out; and who may speak at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sensorium.engine.fed_stream import FedStream, failure
from sensorium.engine.protocol import AddVoice, EngineFacts, Hush, Say, SpeechControl
from sensorium.errors import BusyError, MediaError, NotFoundError, RequestError, UnsupportedError
from sensorium.types import CallFailed, Codes, Event, Failed, Finished, Request, Sound, SpeechOptions

MAX_CALLS = 32
"""Calls of one speech that may be sent and not read to their end."""
MAX_VOICES, MAX_NAME = 1024, 256


class Speech(FedStream):
    """The events of one speech, to exactly one Finished or Failed, and the door for its calls.

    Without sound every call ends in exactly one Codes with `ended`, or CallFailed; with sound in exactly one Sound with
    `ended`. So do those that are still there when the speech ends.
    """

    word, items, full = "speech", "calls", "calls"

    def __init__(
        self,
        speech_id: str,
        send: Callable[[SpeechControl], None],
        abort: Callable[[str], None],
        loop: asyncio.AbstractEventLoop | None,
        has_sound: bool = False,
    ) -> None:
        super().__init__(speech_id, send, abort, loop, MAX_CALLS)
        self.has_sound = has_sound

    # ---- in --------------------------------------------------------------------------------------------------------

    def say(
        self,
        ids: Sequence[int],
        hidden: np.ndarray | None = None,
        *,
        last: bool = True,
        min_new: int | None = None,
        max_new: int | None = None,
    ) -> int:
        """Queue a call; its number. Never blocks. Arguments as in SpeechWork; hidden [len(ids), llm_dim].

        Raises RequestError, OverloadedError while MAX_CALLS are not read to their end, and EngineError once the speech
        has ended.
        """
        try:
            rows = None if hidden is None else np.array(hidden, dtype=np.float32)
            spoken = tuple(int(token) for token in ids)
        except (TypeError, ValueError) as error:
            raise RequestError(f"ids must be whole numbers and hidden an array of floats: {error}") from error
        return self._feed(lambda call: Say(self.request_id, call, spoken, rows, last, min_new, max_new))

    def hush(self) -> None:
        """End the calls sent so far, and the turn: a barge-in. What they said meanwhile may still come."""
        self._send(Hush(self.request_id))

    def close(self) -> None:
        """Give the slot back at once."""
        self.abort()

    # ---- out -------------------------------------------------------------------------------------------------------

    def speak(self, ids: Sequence[int], hidden: np.ndarray | None = None, **how: Any) -> list[int]:
        """Queue a call (`how`: as in say) and read its codes, past all before it. Raises what it failed with."""
        said = _Said(self.say(ids, hidden, **how))
        for event in self:
            if self._is_end(said, event):
                return said.codes
        raise self._over()

    async def aspeak(self, ids: Sequence[int], hidden: np.ndarray | None = None, **how: Any) -> list[int]:
        said = _Said(self.say(ids, hidden, **how))
        async for event in self:
            if self._is_end(said, event):
                return said.codes
        raise self._over()

    def sound(self, ids: Sequence[int], hidden: np.ndarray | None = None, **how: Any) -> bytes:
        """As speak, of a speech with sound: its samples, 16-bit little-endian."""
        said = _Said(self.say(ids, hidden, **how))
        for event in self:
            if self._is_end(said, event):
                return b"".join(said.pcm)
        raise self._over()

    async def asound(self, ids: Sequence[int], hidden: np.ndarray | None = None, **how: Any) -> bytes:
        said = _Said(self.say(ids, hidden, **how))
        async for event in self:
            if self._is_end(said, event):
                return b"".join(said.pcm)
        raise self._over()

    def _ends(self, event: Event) -> int | None:
        if self.has_sound:
            return event.index if isinstance(event, Sound) and event.ended is not None else None
        ends = isinstance(event, CallFailed) or (isinstance(event, Codes) and event.ended is not None)
        return event.call if ends else None  # type: ignore[union-attr]

    def _lost(self, number: int, code: str, message: str, status: int, turn: int) -> Event:
        if self.has_sound:
            return Sound(self.request_id, number, turn, b"", "failed", code, message)
        return CallFailed(self.request_id, number, code, message, status)

    def _is_end(self, said: _Said, event: Event) -> bool:
        """Whether the call has ended; takes what is said in it."""
        if isinstance(event, Codes) and event.call == said.call:
            said.codes += event.codes
        elif isinstance(event, Sound) and event.index == said.call:
            said.pcm.append(event.pcm)
            if event.ended == "failed":
                raise failure(event)
        elif isinstance(event, CallFailed) and event.call == said.call:
            raise failure(event)
        return self._ends(event) == said.call


class _Said:
    """What has come of a call."""

    def __init__(self, call: int) -> None:
        self.call = call
        self.codes: list[int] = []
        self.pcm: list[bytes] = []


class SpeechPlaces:
    """Counts who speaks: each holds a slot of the speech LM; and knows the names of the voices."""

    def __init__(self, facts: EngineFacts) -> None:
        self._slots, self.can_sound, self.can_clone = facts.speech_slots, facts.can_sound, facts.can_clone
        self.voices = dict.fromkeys(facts.voices)
        self._held: set[str] = set()

    @property
    def num_held(self) -> int:
        return len(self._held)

    def check(self, options: SpeechOptions) -> None:
        """Raises UnsupportedError, NotFoundError."""
        if not self._slots:
            raise UnsupportedError("this engine has no speech LM; load a model that speaks, with init_tts")
        if options.voice is not None:
            self.check_voice(options.voice)

    def check_voice(self, name: str) -> None:
        self.check_codec()
        if name not in self.voices:
            known = ", ".join(self.voices) or "none; add_voice makes one of a recording"
            raise NotFoundError(f"there is no voice {name!r}; there are: {known}", param="voice")

    def check_codec(self) -> None:
        if not self.can_sound:
            raise UnsupportedError(
                "this engine makes no sound: it has no codec; load a checkpoint with assets/token2wav, with init_tts",
                param="voice",
            )

    def check_cloning(self, place: str) -> None:
        """Raises UnsupportedError naming where a recording was given."""
        if not self.can_clone:
            reason = "this model makes no voices of recordings: its codec lacks the networks that listen to them, or"
            raise UnsupportedError(f"{place}: {reason} ONNX Runtime is missing (sensorium[speech])", param=place)

    def take(self, name: str) -> None:
        """Raises BusyError where no slot is free."""
        if len(self._held) >= self._slots:
            raise BusyError(
                f"{len(self._held)} speeches are open, as many as speech_slots allows; try again later",
                reason="speech",
            )
        self._held.add(name)

    def change(self, name: str, options: SpeechOptions | None) -> None:
        """Somebody who was let in speaks otherwise, or not any more."""
        if options is None:
            self.give_back(name)
            return
        self.check(options)
        if name not in self._held:
            self.take(name)

    def give_back(self, name: str) -> None:
        self._held.discard(name)

    def recording(self, request_id: str, name: str, samples: np.ndarray, rate: int) -> AddVoice:
        """What asks for a voice. Raises UnsupportedError, RequestError."""
        self.check_codec()
        self.check_cloning("voice")
        array = np.asarray(samples)
        if not name or len(name) > MAX_NAME or array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating):
            raise RequestError(
                f"a voice has a name of 1 to {MAX_NAME} characters, and a recording of floats [S] or [S, channels]",
                param="voice",
            )
        if name not in self.voices and len(self.voices) >= MAX_VOICES:
            raise RequestError(f"there are {len(self.voices)} voices; remove one first", param="voice")
        return AddVoice(request_id, name, np.ascontiguousarray(array, np.float32), int(rate))

    def added(self, name: str, event: Event) -> None:
        """How the making of a voice has ended. Raises what it failed with."""
        if isinstance(event, Failed):
            kind = MediaError if event.code == MediaError.code else UnsupportedError
            raise kind(event.message, param="voice") if event.status == 400 else failure(event)
        if isinstance(event, Finished) and event.reason == "stop":
            self.voices[name] = None


def check_spoken(request: Request) -> None:
    """Raises RequestError for a request that cannot be spoken as it asks."""
    speech = request.speech
    assert speech is not None
    if speech.rule == "duplex":
        raise RequestError("the speech rule duplex is for sessions; use half_duplex or chat", param="speech")
    if speech.spoken_prompt > len(request.prompt.ids):
        raise RequestError(f"spoken_prompt: the prompt has {len(request.prompt.ids)} ids", param="speech")
    if request.pooling is not None:
        raise RequestError("speech: embeddings are not spoken", param="speech")
