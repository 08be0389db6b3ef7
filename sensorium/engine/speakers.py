"""All that speaks: text with its hidden rows becomes codes on a slot of the speech LM, and the codes become sound.

A speaker belongs to a speech, a session or a request. What it is given to say is told under an index of its owner's: a
call, a unit, or 0. For the engine's thread.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from sensorium.engine.codec import CodecStage, Made, SoundStream
from sensorium.engine.speech import SpeechStage
from sensorium.engine.speech_chunks import Block, Chunks
from sensorium.engine.speech_rules import SpeechWork, Spoken
from sensorium.engine.voices import Voices
from sensorium.errors import EngineError, SensoriumError, UnsupportedError
from sensorium.types import CallFailed, Codes, Event, Sound, SpeechOptions

log = logging.getLogger(__name__)
# Rounds of the speech LM at a time: as many as a unit or a piece takes where they go on beside what the backbone
# computes, few where that waits for them.
_ROUNDS_BESIDE, _ROUNDS = 28, 8
_NAP_S = 0.0002


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """Text to be spoken, after what was given before; fields as in SpeechWork.

    is_over: nothing more comes under its index. ends: the turn's sound ends here. Without is_spoken there are no words,
    and the turn is dropped.
    """

    index: int
    turn: int = 0
    ids: Sequence[int] = ()
    hidden: torch.Tensor | None = None
    last: bool = True
    min_new: int | None = None
    max_new: int | None = None
    is_over: bool = True
    ends: bool = True
    is_spoken: bool = True


@dataclass(frozen=True, slots=True)
class _Out:
    """What leaves a speaker next: a piece for the codec, then the end of an index; `anew`: the stream begins afresh."""

    index: int
    turn: int
    block: Block | None = None
    ended: str | None = None
    error: SensoriumError | None = None
    anew: bool = False


@dataclass(slots=True, eq=False)
class Speaker:
    id: str
    slot: int
    chunks: Chunks
    tells_codes: bool
    stream: SoundStream | None
    running: Text | None = None
    queued: deque[Text] = field(default_factory=deque[Text])
    out: deque[_Out] = field(default_factory=deque[_Out])
    open: dict[int, int] = field(default_factory=dict[int, int])
    """Index -> turn, of what was given to say and has not ended."""
    ended: int = 0
    """How many of those have ended."""
    broken: set[int] = field(default_factory=set[int])
    """Indexes that failed: what more comes under them is not spoken."""
    num_ids: int = 0
    num_codes: int = 0

    @property
    def is_quiet(self) -> bool:
        return not self.open


class Speakers:
    """stage: None where nothing speaks. codec: None where speech ends in codes."""

    def __init__(self, stage: SpeechStage | None, codec: CodecStage | None, voices: Voices) -> None:
        self._stage, self._codec, self._voices = stage, codec, voices
        self._by_slot: dict[int, Speaker] = {}
        self._by_stream: dict[SoundStream, Speaker] = {}
        self._given: torch.cuda.Event | None = None

    @property
    def has_work(self) -> bool:
        if self._codec is not None and self._codec.has_work:
            return True
        return self.has_codes

    @property
    def has_codes(self) -> bool:
        """Whether the speech LM has work."""
        return self._stage is not None and self._stage.is_speaking

    # ---- speakers --------------------------------------------------------------------------------------------------

    def open(self, name: str, options: SpeechOptions) -> Speaker:
        """Raises UnsupportedError, OverloadedError where no slot is free, NotFoundError for a voice that is unknown."""
        if self._stage is None:
            raise UnsupportedError("this engine has no speech LM; load the model with init_tts")
        voice = None if options.voice is None else self._voices.find(options.voice)
        sampling = options.sampling or replace(self._stage.default_sampling, seed=options.seed)
        slot = self._stage.open(options.rule, sampling)
        chunks = Chunks(options.rule, eager=options.eager)
        speaker = Speaker(name, slot, chunks, options.codes or options.voice is None, None)
        self._by_slot[slot] = speaker
        if voice is not None:
            assert self._codec is not None
            speaker.stream = self._codec.open(voice)
            self._by_stream[speaker.stream] = speaker
        return speaker

    def close(self, speaker: Speaker) -> None:
        """Give back what it has; nothing more is told of it."""
        assert self._stage is not None
        if speaker.stream is not None:
            assert self._codec is not None
            self._codec.close(speaker.stream)
            del self._by_stream[speaker.stream]
        del self._by_slot[speaker.slot]
        self._stage.close(speaker.slot)

    # ---- what is said ----------------------------------------------------------------------------------------------

    def say(self, speaker: Speaker, text: Text, events: list[Event]) -> None:
        """Speak a text once what was given before is spoken. Its index ends in one Sound or Codes, or CallFailed."""
        if text.index in speaker.broken:
            return
        if text.is_spoken or text.is_over:
            speaker.open[text.index] = text.turn
        speaker.queued.append(text)
        self._begin(speaker, events)

    def cut(self, speaker: Speaker, events: list[Event], error: SensoriumError | None = None) -> None:
        """End all that was given to say, at once, and the turn. error: why, where nobody asked for it."""
        assert self._stage is not None
        if error is not None:
            speaker.broken.update(speaker.open)
        for index, turn in list(speaker.open.items()):
            self._end(speaker, index, turn, "cut" if error is None else "failed", error, b"", events)
        speaker.running = None
        speaker.queued.clear()
        speaker.out.clear()
        speaker.chunks.reset()
        self._stage.reset(speaker.slot)
        if speaker.stream is not None and self._codec is not None:
            self._codec.reset(speaker.stream)

    @property
    def go_beside(self) -> bool:
        """Whether speech and sound go on beside a step of the backbone; see `beside`."""
        return self._stage is not None and self._stage.runs_ahead

    def mark(self) -> None:
        """All that was given to say until now is computed once the device gets here."""
        if self._stage is not None and self._stage.device.type == "cuda" and self.has_codes:
            self._given = torch.cuda.Event()
            self._given.record()

    def beside(self, events: list[Event], is_over: Callable[[], bool]) -> None:
        """Speak and sound while the device computes a step of the backbone, until that is over; not on a CPU."""
        while self.go_beside and self.has_work:
            self.speak(events, lambda: False, self._given)
            self.sound(events, lambda: False)
            if is_over():
                break
            time.sleep(_NAP_S)

    def speak(self, events: list[Event], waits: Callable[[], bool], given: torch.cuda.Event | None = None) -> None:
        """Some more codes for all that speak. What fails ends the texts that took part, and no more.

        waits: whether nobody else has anything to do, so that the device may be waited for. given: see `mark`; without
        it the device first does what it was told to.
        """
        stage = self._stage
        if stage is None or not stage.is_speaking:
            return
        try:
            rounds = _ROUNDS_BESIDE if stage.runs_ahead else _ROUNDS
            spoken = stage.advance(rounds, waits=lambda: waits() and not self._has_sound, given=given)
        except Exception as error:
            log.exception("a step of the speech LM failed; its calls end")
            for speaker in list(self._by_slot.values()):
                if speaker.running is not None:
                    self._call_failed(speaker, speaker.running, _explained(error, "the speech LM"), events)
            return
        for one in spoken:
            self._heard(self._by_slot[one.slot], one, events)

    @property
    def _has_sound(self) -> bool:
        return self._codec is not None and self._codec.is_ready

    def sound(self, events: list[Event], waits: Callable[[], bool]) -> None:
        """Some more sound. waits: as in speak."""
        if self._codec is not None and self._codec.has_work:
            for made in self._codec.step(lambda: not self.has_codes and waits()):
                self._sounded(self._by_stream[made.stream], made, events)

    def _begin(self, speaker: Speaker, events: list[Event]) -> None:
        """Let the next text run, if the speaker is silent."""
        assert self._stage is not None
        while speaker.running is None and speaker.queued:
            text = speaker.queued.popleft()
            if not text.is_spoken:
                self._stage.reset(speaker.slot)
                self._anew(speaker, text, events)
                if text.is_over:
                    self._emit(speaker, _Out(text.index, text.turn, ended="eos"), events)
                continue
            work = SpeechWork(speaker.slot, text.ids, text.hidden, text.last, text.min_new, text.max_new)
            try:
                self._stage.start(work)
            except SensoriumError as error:
                self._break(speaker, text, error, events)
                continue
            speaker.running = text
            speaker.num_ids += len(text.ids)

    def _anew(self, speaker: Speaker, text: Text, events: list[Event]) -> None:
        speaker.chunks.reset()
        self._emit(speaker, _Out(text.index, text.turn, anew=True), events)

    def _heard(self, speaker: Speaker, one: Spoken, events: list[Event]) -> None:
        """New codes of the text that runs."""
        text = speaker.running
        assert text is not None
        if one.ended == "error":
            assert one.error is not None
            self._call_failed(speaker, text, one.error, events)
            return
        speaker.num_codes += len(one.codes)
        over = one.ended is not None
        ended = one.ended if text.is_over else None
        if speaker.tells_codes:
            events.append(Codes(speaker.id, text.index, tuple(one.codes), ended))
        if speaker.stream is not None:
            for block in speaker.chunks.take(one.codes, over=over, ends=text.ends):
                self._emit(speaker, _Out(text.index, text.turn, block), events)
            if ended is not None:
                self._emit(speaker, _Out(text.index, text.turn, ended=ended), events)
        elif ended is not None:
            _over(speaker, text.index)
        if over:
            speaker.running = None
            if text.ends and not text.last and self._stage is not None:
                self._stage.reset(speaker.slot)
            self._begin(speaker, events)

    def _call_failed(self, speaker: Speaker, text: Text, error: SensoriumError, events: list[Event]) -> None:
        """Of a text that ran; the turn ends with it."""
        speaker.running = None
        self._anew(speaker, text, events)
        self._break(speaker, text, error, events)
        self._begin(speaker, events)

    def _break(self, speaker: Speaker, text: Text, error: SensoriumError, events: list[Event]) -> None:
        """An index fails, behind the sound that is there."""
        speaker.broken.add(text.index)
        speaker.queued = deque(one for one in speaker.queued if one.index != text.index)
        self._emit(speaker, _Out(text.index, text.turn, ended="failed", error=error), events)

    # ---- what leaves -----------------------------------------------------------------------------------------------

    def _emit(self, speaker: Speaker, out: _Out, events: list[Event]) -> None:
        speaker.out.append(out)
        if len(speaker.out) == 1:
            self._flow(speaker, events)

    def _sounded(self, speaker: Speaker, made: Made, events: list[Event]) -> None:
        if made.error is not None:
            self.cut(speaker, events, _explained(made.error, "the codec"))
            return
        piece = speaker.out.popleft()
        after = speaker.out[0] if speaker.out else None
        if made.pcm and (after is None or after.index != piece.index or after.ended is None):
            events.append(Sound(speaker.id, piece.index, piece.turn, made.pcm))
            made = Made(made.stream, b"")
        self._flow(speaker, events, made.pcm)

    def _flow(self, speaker: Speaker, events: list[Event], pcm: bytes = b"") -> None:
        """Tell what needs no more work, up to the next piece for the codec. pcm goes with the first end."""
        while speaker.out:
            out = speaker.out[0]
            if out.block is not None:
                assert speaker.stream is not None
                assert self._codec is not None
                self._codec.push(speaker.stream, out.block)
                return
            speaker.out.popleft()
            if out.anew and speaker.stream is not None and self._codec is not None:
                self._codec.reset(speaker.stream)
            if out.ended is not None:
                self._end(speaker, out.index, out.turn, out.ended, out.error, pcm, events)
                pcm = b""

    def _end(
        self,
        speaker: Speaker,
        index: int,
        turn: int,
        ended: str,
        error: SensoriumError | None,
        pcm: bytes,
        events: list[Event],
    ) -> None:
        """The one end of an index."""
        _over(speaker, index)
        if speaker.stream is not None:
            code, message = (error.code, error.message) if error is not None else ("", "")
            events.append(Sound(speaker.id, index, turn, pcm, ended, code, message))  # type: ignore[arg-type]
        elif error is not None:
            events.append(CallFailed(speaker.id, index, error.code, error.message, error.status, error.param))
        else:
            events.append(Codes(speaker.id, index, (), "cut" if ended == "cut" else "eos"))


def _over(speaker: Speaker, index: int) -> None:
    speaker.open.pop(index, None)
    speaker.ended += 1


def _explained(error: Exception, what: str) -> SensoriumError:
    """What callers are told of a failure."""
    if isinstance(error, SensoriumError):
        return error
    return EngineError(f"{what} failed ({type(error).__name__}); the server log has the details")
