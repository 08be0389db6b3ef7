"""The engine's speeches: control messages in, calls to their speakers. For the engine's thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sensorium.engine.protocol import OpenSpeech, Say, SpeechControl
from sensorium.engine.speakers import Speaker, Speakers, Text
from sensorium.engine.speech_rules import RULES
from sensorium.errors import SensoriumError
from sensorium.types import Event, Failed, Finished, Timings, Usage


@dataclass(frozen=True, slots=True)
class _Speech:
    speaker: Speaker
    opened_s: float
    one_call: bool


class SpeechCalls:
    """Calls of one speech follow each other; those of all speakers run together, some rounds in each engine step."""

    def __init__(self, speakers: Speakers, clock: Callable[[], float]) -> None:
        self._speakers, self._clock = speakers, clock
        self._speeches: dict[str, _Speech] = {}

    def __contains__(self, speech_id: str) -> bool:
        return speech_id in self._speeches

    def take(self, message: SpeechControl, events: list[Event]) -> None:
        if isinstance(message, OpenSpeech):
            self._open(message, events)
            return
        speech = self._speeches.get(message.speech_id)
        if speech is None:  # it has ended meanwhile; its last event is out already
            return
        if isinstance(message, Say):
            hidden = None if message.hidden is None else torch.tensor(message.hidden)
            ends = message.last or speech.one_call
            text = Text(message.call, 0, message.ids, hidden, message.last, message.min_new, message.max_new, ends=ends)
            self._speakers.say(speech.speaker, text, events)
        else:
            self._speakers.cut(speech.speaker, events)

    def finish(self, speech_id: str, events: list[Event]) -> None:
        """Close a speech at once; its calls end with it."""
        speech = self._speeches.pop(speech_id)
        speaker = speech.speaker
        if speaker.stream is not None:
            self._speakers.cut(speaker, events)
        self._speakers.close(speaker)
        total_s = self._clock() - speech.opened_s
        usage = Usage(speaker.num_ids, speaker.num_codes)
        events.append(Finished(speech_id, "abort", usage, Timings(0.0, None, total_s)))

    def fail_all(self, message: str, code: str, status: int) -> list[Event]:
        failed: list[Event] = [Failed(speech_id, code, message, status) for speech_id in self._speeches]
        for speech in self._speeches.values():
            self._speakers.close(speech.speaker)
        self._speeches.clear()
        return failed

    def _open(self, message: OpenSpeech, events: list[Event]) -> None:
        try:
            speaker = self._speakers.open(message.speech_id, message.options)
        except SensoriumError as error:
            events.append(Failed(message.speech_id, error.code, error.message, error.status, error.param))
            return
        one_call = RULES[message.options.rule].one_call
        self._speeches[message.speech_id] = _Speech(speaker, self._clock(), one_call)
