"""The engine's speeches: control messages in, calls through the speech stage, codes out. For the engine's thread."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from sensorium.engine.protocol import OpenSpeech, Say, SpeechControl
from sensorium.engine.speech import SpeechStage
from sensorium.engine.speech_rules import SpeechWork
from sensorium.errors import SensoriumError, UnsupportedError
from sensorium.types import CallFailed, Codes, Event, Failed, Finished, Timings, Usage

log = logging.getLogger(__name__)
# Rounds of an engine step: short, as a step of the backbone waits for them, and is waited for.
_ROUNDS = 8


@dataclass(slots=True)
class _Speech:
    id: str
    slot: int
    opened_s: float
    running: Say | None = None
    queued: deque[Say] = field(default_factory=deque[Say])
    num_ids: int = 0
    num_codes: int = 0


class SpeechCalls:
    """Calls of one speech follow each other; those of all speeches run together, some rounds in each engine step."""

    def __init__(self, stage: SpeechStage | None, clock: Callable[[], float]) -> None:
        self._stage, self._clock = stage, clock
        self._speeches: dict[str, _Speech] = {}

    def __contains__(self, speech_id: str) -> bool:
        return speech_id in self._speeches

    @property
    def has_work(self) -> bool:
        return any(speech.running is not None for speech in self._speeches.values())

    def take(self, message: SpeechControl, events: list[Event]) -> None:
        if isinstance(message, OpenSpeech):
            self._open(message, events)
            return
        speech = self._speeches.get(message.speech_id)
        if speech is None:  # it has ended meanwhile; its last event is out already
            return
        if isinstance(message, Say):
            speech.queued.append(message)
            self._begin(speech, events)
        else:
            self._hush(speech, events)

    def step(self, events: list[Event]) -> None:
        """Some more codes for all that speak. What fails ends the calls that took part."""
        if self._stage is None or not self.has_work:
            return
        by_slot = {speech.slot: speech for speech in self._speeches.values()}
        try:
            spoken = self._stage.advance(_ROUNDS)
        except Exception as error:
            log.exception("a step of the speech LM failed; its calls end")
            message = f"the speech LM failed ({type(error).__name__}); the server log has the details"
            for speech in by_slot.values():
                if speech.running is not None:
                    self._failed(speech, speech.running, "engine_error", message, 500, events)
            return
        for one in spoken:
            speech = by_slot[one.slot]
            call = speech.running
            assert call is not None
            if one.ended == "error":
                error = one.error
                assert error is not None
                self._failed(speech, call, error.code, error.message, error.status, events)
                continue
            speech.num_codes += len(one.codes)
            events.append(Codes(speech.id, call.call, tuple(one.codes), one.ended))
            if one.ended is not None:
                speech.running = None
                self._begin(speech, events)

    def finish(self, speech_id: str, events: list[Event]) -> None:
        """Close a speech at once; its calls end with it."""
        speech = self._remove(speech_id)
        total_s = self._clock() - speech.opened_s
        usage = Usage(speech.num_ids, speech.num_codes)
        events.append(Finished(speech_id, "abort", usage, Timings(0.0, None, total_s)))

    def fail_all(self, message: str, code: str, status: int) -> list[Event]:
        failed: list[Event] = [Failed(speech_id, code, message, status) for speech_id in self._speeches]
        for speech_id in list(self._speeches):
            self._remove(speech_id)
        return failed

    def _open(self, message: OpenSpeech, events: list[Event]) -> None:
        try:
            if self._stage is None:
                raise UnsupportedError("this engine has no speech LM; load the model with init_tts")
            slot = self._stage.open(message.rule, message.sampling)
        except SensoriumError as error:
            events.append(Failed(message.speech_id, error.code, error.message, error.status, error.param))
            return
        self._speeches[message.speech_id] = _Speech(message.speech_id, slot, self._clock())

    def _begin(self, speech: _Speech, events: list[Event]) -> None:
        """Let the next call run, if the speech is silent."""
        assert self._stage is not None
        while speech.running is None and speech.queued:
            say = speech.queued.popleft()
            hidden = None if say.hidden is None else torch.tensor(say.hidden)
            work = SpeechWork(speech.slot, say.ids, hidden, say.last, say.min_new, say.max_new)
            try:
                self._stage.start(work)
            except SensoriumError as error:
                events.append(CallFailed(speech.id, say.call, error.code, error.message, error.status, error.param))
                continue
            speech.running = say
            speech.num_ids += len(say.ids)

    def _hush(self, speech: _Speech, events: list[Event]) -> None:
        assert self._stage is not None
        calls = [speech.running, *speech.queued] if speech.running is not None else []
        events += [Codes(speech.id, say.call, (), "cut") for say in calls]
        speech.running = None
        speech.queued.clear()
        self._stage.reset(speech.slot)

    def _failed(self, speech: _Speech, say: Say, code: str, message: str, status: int, events: list[Event]) -> None:
        events.append(CallFailed(speech.id, say.call, code, message, status))
        speech.running = None
        self._begin(speech, events)

    def _remove(self, speech_id: str) -> _Speech:
        assert self._stage is not None
        speech = self._speeches.pop(speech_id)
        self._stage.close(speech.slot)
        return speech
