"""Requests whose answers are spoken: tokens with their hidden rows go to a speaker while more are generated.

A request's Finished waits until its sound is out. For the engine's thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from sensorium.engine.readout import Readout
from sensorium.engine.rules import thinking_marks
from sensorium.engine.sequence import Sequence
from sensorium.engine.speakers import Speaker, Speakers, Text
from sensorium.models.base import Model, Tokenizer
from sensorium.types import Event, Failed, Finished, FinishReason, Request, SpeechOptions

GROUP = 10
"""Tokens that are spoken at once by the rule half_duplex. Source: speech.md 1.6."""


class Words:
    """Ids with their hidden rows, until they are given to a speaker."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.rows: list[torch.Tensor] = []

    def add(self, token: int, row: torch.Tensor) -> None:
        self.ids.append(token)
        self.rows.append(row)

    def take(self, count: int | None = None) -> tuple[list[int], torch.Tensor | None]:
        """The first `count`, or all: ids, and their rows [n, E]."""
        count = len(self.ids) if count is None else count
        ids, rows = self.ids[:count], self.rows[:count]
        del self.ids[:count], self.rows[:count]
        return ids, torch.stack(rows) if rows else None


class Spoken:
    """Which tokens of an answer are spoken: none that only steer, and no thoughts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._special = tokenizer.special_ids
        begin, end = thinking_marks(tokenizer) or ((), ())
        self._begin, self._end = begin[-1:], end
        self._is_thinking = False

    def takes(self, token: int) -> bool:
        if token in self._begin or token in self._end:
            self._is_thinking = token in self._begin
            return False
        return not self._is_thinking and token not in self._special


@dataclass(slots=True)
class _Answer:
    speaker: Speaker
    options: SpeechOptions
    spoken: Spoken
    words: Words = field(default_factory=Words)
    num_seen: int = 0
    """Generated tokens whose rows have come."""
    has_said: bool = False
    end: Finished | None = None
    """What is told once all is spoken."""


def spoken_end(model: Model, tokenizer: Tokenizer) -> frozenset[int]:
    """The token that ends a spoken answer, where the family has one."""
    name = getattr(model, "spoken_end", None) if model.speech is not None else None
    ids = tokenizer.encode(name, allow_special=True) if name is not None else []
    return frozenset(ids) if len(ids) == 1 else frozenset()


class Answers:
    def __init__(self, speakers: Speakers, readout: Readout, tokenizer: Tokenizer) -> None:
        self._speakers, self._readout, self._tokenizer = speakers, readout, tokenizer
        self._answers: dict[str, _Answer] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._answers

    def __bool__(self) -> bool:
        return bool(self._answers)

    def open(self, request: Request) -> None:
        """Raises what Speakers.open raises."""
        assert request.speech is not None
        speaker = self._speakers.open(request.id, request.speech)
        self._answers[request.id] = _Answer(speaker, request.speech, Spoken(self._tokenizer))

    def told(self, seq: Sequence, reason: FinishReason | None, events: list[Event]) -> None:
        """A token was appended to a sequence; reason: the answer ends with it. What is known to be said is."""
        answer = self._answers.get(seq.id)
        if answer is None:
            return
        rows = self._readout.take_spoken(seq.id)
        if answer.options.spoken_prompt:
            self._recite(answer, seq, rows, events)
            return
        first = seq.prompt_len + answer.num_seen
        for token, row in zip(seq.ids[first : first + len(rows)], rows, strict=True):
            if answer.spoken.takes(token):
                answer.words.add(token, row)
        answer.num_seen += len(rows)
        if reason is None:
            self._say_groups(answer, events)
        else:
            self._say_rest(answer, events, last=reason == "stop")

    def _recite(self, answer: _Answer, seq: Sequence, rows: list[torch.Tensor], events: list[Event]) -> None:
        """The prompt's own words, once."""
        if answer.has_said:
            return
        for token, row in zip(seq.ids[seq.prompt_len - len(rows) : seq.prompt_len], rows, strict=True):
            answer.words.add(token, row)
        while len(answer.words.ids) > GROUP and answer.options.rule == "half_duplex":
            self._say(answer, events, GROUP)
        self._say_rest(answer, events, last=True)

    def _say_groups(self, answer: _Answer, events: list[Event]) -> None:
        while answer.options.rule == "half_duplex" and len(answer.words.ids) >= GROUP:
            self._say(answer, events, GROUP)

    def _say(self, answer: _Answer, events: list[Event], count: int) -> None:
        ids, hidden = answer.words.take(count)
        text = Text(0, 0, ids, hidden, last=False, is_over=False, ends=False)
        self._speakers.say(answer.speaker, text, events)
        answer.has_said = True

    def _say_rest(self, answer: _Answer, events: list[Event], *, last: bool) -> None:
        ids, hidden = answer.words.take()
        text = Text(0, 0, ids, hidden, last=last, is_spoken=bool(ids) or answer.has_said)
        self._speakers.say(answer.speaker, text, events)
        answer.has_said = True

    # ---- ends ------------------------------------------------------------------------------------------------------

    def hold(self, finished: Finished, events: list[Event]) -> None:
        """Tell the end of a request once what it said is sound; of one that was aborted at once."""
        answer = self._answers[finished.request_id]
        answer.end = finished
        if finished.reason == "abort":
            self.cut(finished.request_id, events)

    def abort(self, request_id: str, events: list[Event]) -> None:
        """Of a request whose text is over."""
        answer = self._answers[request_id]
        assert answer.end is not None
        answer.end = replace(answer.end, reason="abort")
        self.cut(request_id, events)

    def cut(self, request_id: str, events: list[Event]) -> None:
        """End what is being said; an answer that has said nothing yet ends too."""
        speaker = self._answers[request_id].speaker
        if speaker.is_quiet and not speaker.ended:
            speaker.open[0] = 0
        self._speakers.cut(speaker, events)

    def fail(self, failed: Failed, events: list[Event]) -> None:
        self.cut(failed.request_id, events)
        self._close(failed.request_id)

    def release(self, events: list[Event]) -> None:
        """Tell the ends of requests that have nothing more to say."""
        over = [one for one in self._answers.values() if one.end is not None and one.speaker.is_quiet]
        for answer in over:
            assert answer.end is not None
            self._close(answer.end.request_id)
            events.append(answer.end)

    def _close(self, request_id: str) -> None:
        answer = self._answers.pop(request_id)
        self._speakers.close(answer.speaker)

    def fail_all(self, message: str, code: str, status: int) -> list[Event]:
        """The requests whose text is over; those of the others' events come from elsewhere."""
        failed: list[Event] = []
        for request_id, answer in list(self._answers.items()):
            if answer.end is not None:
                failed.append(Failed(request_id, code, message, status))
            self._close(request_id)
        return failed
