"""What MiniCPM-o does in a full-duplex session: when it listens, when it speaks, when a turn is over.

The rules are those of the released model code; where they are mended, docs/duplex.md says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from sensorium.errors import RequestError
from sensorium.kernels.upload import upload
from sensorium.models.minicpm_duplex_record import UnitRecord, UnitType
from sensorium.models.minicpm_duplex_sampler import TextSampler, TextSampling, check_number, decode_all
from sensorium.models.minicpm_duplex_tokens import DuplexTokens
from sensorium.models.minicpm_duplex_window import Protected, Window, WindowOptions
from sensorium.models.tokenizer import Tokenizer
from sensorium.types import Decision, Outcome, Prompt, SamplingParams, Unit

MAX_CHARS = 28
"""Of a unit's text in the demo's service, at which it ends the unit."""
# Units that a session may go back: as many as the engine does.
_MOST_MARKS = 65
PREVIOUS = "\n\nprevious: "
"""What the window writes before the text of units that it dropped."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """What a session is opened with. force_listen_count: units at the start in which the model only listens.

    suffix_ids: the end of the opening prompt, which the context window computes again behind "previous" text.
    """

    ls_mode: str = "explicit"
    force_listen_count: int = 0
    suffix_ids: tuple[int, ...] = ()
    context_previous_marker: str = PREVIOUS
    window: WindowOptions = field(default_factory=WindowOptions)

    def __post_init__(self) -> None:
        check_number("force_listen_count", self.force_listen_count, whole=True)


@dataclass(frozen=True, slots=True)
class UnitOptions:
    """How one unit is decided. force_listen ends an open turn at once; skip_listen: the start, in which the model
    only listens, is over; max_chars: see MAX_CHARS, None for no limit."""

    sampling: TextSampling = field(default_factory=TextSampling)
    max_new_speak_tokens_per_chunk: int = 20
    force_listen: bool = False
    skip_listen: bool = False
    max_chars: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_new_speak_tokens_per_chunk", "max_chars"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), positive=True, whole=True)


@dataclass(slots=True)
class Words:
    """What came of a unit so far. ids: those collected for speech, turn_eos among them; fed: all that was fed; said:
    what belongs to the transcript.

    speech_ends: a turn ended in silence, and its speech state must be dropped without another sound.
    """

    is_listen: bool = False
    end_of_turn: bool = False
    speech_ends: bool = False
    ids: list[int] = field(default_factory=list[int])
    fed: list[int] = field(default_factory=list[int])
    said: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class _Mark:
    """Where a session stood after unit `index`, for rewind()."""

    index: int
    turn_open: bool
    num_units: int
    num_history: int
    num_draws: int
    num_kept: int


class DuplexPolicy:
    """One full-duplex session; a SessionPolicy."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, options: Mapping[str, Any]) -> None:
        """options: fields of SessionOptions and WindowOptions. Of `sampling` only the seed counts: see UnitOptions."""
        self.tokens = DuplexTokens.of(tokenizer)
        self.options = read_session(options)
        self.sampler = TextSampler(self.tokens, sampling.seed)
        self.turn_open = False
        self.words = Words()
        self._explicit = self.options.ls_mode == "explicit"
        self._tokenizer = tokenizer
        self._unit = UnitOptions()
        self._type: UnitType = "audio"
        self._index = -1
        self._start = self._rows = self._step = 0
        self._num_units = 0
        self._is_running = self._cut = self._forced = False
        self._marks: list[_Mark] = []

    @property
    def max_feed(self) -> int:
        """Most ids of a unit: each step feeds one, and a cut-off turn is closed by three."""
        return self._unit.max_new_speak_tokens_per_chunk + 3

    # ---- what the engine calls -------------------------------------------------------------------------------------

    def opened(self, length: int) -> None:
        tokenizer, suffix = self._tokenizer, self.options.suffix_ids
        self.window = Window(
            self.options.window,
            Protected(length - len(suffix), suffix),
            tokenizer.encode(self.options.context_previous_marker),
            tokenizer.special_ids,
            tokenizer.decode,
        )
        self._mark()

    def begin(self, unit: Unit, at: int) -> None:
        self._unit = read_unit(unit.options)
        self._type = unit_type(unit.prompt)
        self._index, self._start, self._rows = unit.index, at, len(unit.prompt.ids)
        if self._unit.skip_listen:
            self._num_units = max(self._num_units, self.options.force_listen_count)
        self._forced = self._unit.force_listen or self._cut or self._num_units < self.options.force_listen_count
        self._cut = False
        self._num_units += 1
        self._step = 0
        self._is_running = True
        self.words = Words()

    def decide(self, logits: torch.Tensor) -> Decision:
        return self.decide_all([self], logits[None])[0]

    @staticmethod
    def decide_all(policies: Sequence[DuplexPolicy], logits: torch.Tensor) -> list[Decision]:
        """One decision per policy and row of logits [M, V]."""
        decisions = [policy._without_logits() for policy in policies]
        rows = [row for row, decision in enumerate(decisions) if decision is None]
        if rows:
            asked = [policies[row] for row in rows]
            chosen = logits if len(rows) == len(policies) else logits[upload(rows, logits.device)]
            ids = decode_all([p.sampler for p in asked], [p._unit.sampling for p in asked], chosen)
            for row, policy, token in zip(rows, asked, ids, strict=True):
                decisions[row] = policy._take(token)
        return [policy._fed(decision) for policy, decision in zip(policies, decisions, strict=True) if decision]

    def end(self, length: int) -> Outcome:
        words, self._is_running = self.words, False
        record = UnitRecord(
            self._num_units - 1,
            length - self._start,
            self._type,
            words.is_listen,
            tuple(words.ids),
            self._tokenizer.decode(words.ids),
        )
        splice = self.window.add(record)
        if splice is not None:
            self._marks.clear()  # what is dropped does not come back
        self._mark()
        info = {
            "unit": record.id,
            "type": record.type,
            "length": record.length,
            "is_listen": words.is_listen,
            "end_of_turn": words.end_of_turn,
            "speech_ends": words.speech_ends,
            "turn_open": self.turn_open,
            "fed": tuple(words.fed),
            "said": tuple(words.said),
            "window": self.window.stats(),
        }
        speech = "end" if words.end_of_turn else "more"
        if words.is_listen:
            speech = "drop" if words.speech_ends else None
        return Outcome(info, (splice,) if splice is not None else (), speech)

    def interrupt(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        """Ends an open turn: inside a unit at once, between units with the next one, which then only listens."""
        if options:
            raise RequestError(f"{next(iter(options))} is not an option of an interruption", param=next(iter(options)))
        if not self._is_running:
            self._cut = self.turn_open
            return ()
        decision = self._fed(self._listen())
        return decision.feed

    def rewind(self, index: int) -> None:
        """Go back to the end of unit `index`, unless the window has dropped rows since."""
        while self._marks and self._marks[-1].index > index:
            self._marks.pop()
        if not self._marks:
            raise RequestError(f"the window has dropped what was before unit {index + 1}", param="index")
        mark = self._marks[-1]
        self._is_running = self._cut = False
        self.turn_open, self._num_units = mark.turn_open, mark.num_units
        del self.sampler.history[mark.num_history :]
        self.sampler.uniforms.position = mark.num_draws
        self.window.forget(len(self.window.units) - mark.num_kept)

    # ---- one step --------------------------------------------------------------------------------------------------

    def _without_logits(self) -> Decision | None:
        """What is decided whatever the logits are; None: they decide."""
        step, most = self._step, self._unit.max_new_speak_tokens_per_chunk
        self._step += 1
        if self._explicit and step == most - 1:
            return self._end(self.tokens.chunk_eos)
        if not self._explicit and step == most:
            return self._end()
        return self._listen() if self._forced else None

    def _take(self, token: int) -> Decision:
        """The token that was drawn, or what stands for it."""
        tokens, words, is_first = self.tokens, self.words, self._step == 1
        if token == tokens.listen and self.turn_open:
            token = tokens.tts_bos  # a turn is only left through turn_eos: this stands for "still speaking"
        words.is_listen = token == tokens.listen
        if token in tokens.terminators:
            return self._end(token)
        if not is_first and self._is_too_long(token):
            return self._end(tokens.chunk_eos)
        words.end_of_turn = token == tokens.turn_eos
        self.turn_open = not words.end_of_turn
        if token != tokens.speak:
            words.said.append(token)
        if not is_first:
            words.ids.append(token)
        return Decision((token,), collect=not is_first)

    def _listen(self) -> Decision:
        self.words.is_listen = True
        if not self.turn_open:
            return self._end(self.tokens.listen)
        self.turn_open, self.words.speech_ends = False, True
        return self._end(self.tokens.turn_eos, self.tokens.listen)

    def _end(self, *terminators: int) -> Decision:
        words = self.words
        if words.is_listen:
            # What a unit said before it chose to listen is never spoken, so neither is the end of its turn.
            words.speech_ends |= words.end_of_turn
            words.end_of_turn = False
        closing = (*(t for t in terminators if self._explicit or t == self.tokens.turn_eos), self.tokens.unit_end)
        # What stays must be computed before what it stands on is taken away.
        length = self._rows + len(words.fed) + len(closing)
        return Decision(closing, end=True, defer=not self.window.will_cut(length))

    def _fed(self, decision: Decision) -> Decision:
        self.words.fed += decision.feed
        return decision

    def _is_too_long(self, token: int) -> bool:
        limit = self._unit.max_chars
        return limit is not None and len(self._tokenizer.decode([*self.words.ids, token])) >= limit

    def _mark(self) -> None:
        sampler, kept = self.sampler, len(self.window.units)
        at = _Mark(self._index, self.turn_open, self._num_units, len(sampler.history), sampler.uniforms.position, kept)
        self._marks.append(at)
        del self._marks[:-_MOST_MARKS]


def unit_type(prompt: Prompt) -> UnitType:
    """What a unit brings."""
    given = {item.modality for item in prompt.media}
    if "audio" in given:
        return "omni" if len(given) > 1 else "audio"
    return "vision" if given else "text"


def read_session(options: Mapping[str, Any]) -> SessionOptions:
    """From plain values. Raises RequestError naming what is unknown."""
    window, own = _split(options, WindowOptions, SessionOptions)
    if "suffix_ids" in own:
        own["suffix_ids"] = tuple(own["suffix_ids"])
    return SessionOptions(**own, window=WindowOptions(**window))


def read_unit(options: Mapping[str, Any]) -> UnitOptions:
    """From plain values. Raises RequestError naming what is unknown."""
    sampling, own = _split(options, TextSampling, UnitOptions)
    return UnitOptions(**own, sampling=TextSampling(**sampling))


def _split(options: Mapping[str, Any], inner: type, outer: type) -> tuple[dict[str, Any], dict[str, Any]]:
    names = {f.name for f in fields(inner)}
    first = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    known = {f.name for f in fields(outer)} - {"window", "sampling"}
    for name in rest:
        if name not in known:
            raise RequestError(
                f"{name} is not an option of full duplex; known: {', '.join(sorted(names | known))}", param=name
            )
    return first, rest
