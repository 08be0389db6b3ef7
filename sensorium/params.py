"""What a caller may ask of one generation, embedding or beam search; checked where it is made.

A value outside its range raises RequestError (a ValueError) that names the field and the value. Lists become tuples, so
that what crosses to the engine is immutable. What depends on a model is checked later, in engine/admission.py.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from sensorium.errors import RequestError, UnsupportedError

log = logging.getLogger(__name__)

GREEDY_BELOW = 1e-5
"""Temperatures below this take the likeliest token."""
_COOLEST = 0.01
MAX_CHOICES = 16384
MAX_STOPS, MAX_STOP_CHARS = 1024, 256
MAX_BIASES = 1024
MAX_NAMED_IDS = 128
MAX_SCHEMA_DEPTH = 64
_INT64 = 1 << 63
_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """What the answer must be: exactly one of the first six."""

    json: str | Mapping[str, Any] | None = None
    """A JSON schema; kept as text."""
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    """A grammar in Lark or GBNF notation."""
    json_object: bool = False
    structural_tag: str | Mapping[str, Any] | None = None
    """Tagged parts within free text: {"structures": [{"begin", "schema", "end"}], "triggers": [...]}; kept as text."""
    whitespace_pattern: str | None = None
    """A regular expression for the blanks between JSON tokens."""
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    after: tuple[int, ...] = ()
    """Token ids that must have been generated before the rule begins, such as the end of thinking."""

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            found = f"got {' and '.join(given)}" if given else "got none"
            raise RequestError(f"structured_outputs: give exactly one of {', '.join(_KINDS)}; {found}", param=_HERE)
        for name in ("json", "structural_tag"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _json_text(f"{_HERE}.{name}", value))
        for name in ("regex", "grammar", "whitespace_pattern"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                _refuse(f"{_HERE}.{name}", value, "a text that is not empty")
        if self.choice is not None:
            choice = _strings(f"{_HERE}.choice", self.choice)
            if not choice or "" in choice:
                _refuse(f"{_HERE}.choice", self.choice, "at least one text, none of them empty")
            object.__setattr__(self, "choice", choice)
        object.__setattr__(self, "after", _ids(f"{_HERE}.after", self.after))


_HERE = "structured_outputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Names and meanings follow vLLM; see docs/sampling.md."""

    n: int = 1
    """Answers to one prompt; with a seed, answer number i has seed + i."""
    best_of: int | None = None
    """None, or the same as n."""
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    penalize_prompt: bool = True
    """Whether repetition_penalty counts prompt tokens too (vLLM does; the MiniCPM chat() method does not)."""
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    """Also a single text or a list."""
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    """So many most likely tokens with each chosen one; -1 is the whole vocabulary."""
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    structured_outputs: StructuredOutputs | None = None
    thinking_token_budget: int | None = None
    """Most tokens between the marks of thinking; -1 is None."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_counts()
        self._check_lists()
        if self.stop and not self.detokenize:
            raise RequestError("stop: needs detokenize, which is False", param="stop")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    def choice(self, index: int) -> SamplingParams:
        """The parameters of answer number `index` alone. Only the first scores the prompt that all share."""
        return replace(
            self,
            n=1,
            best_of=None,
            seed=None if self.seed is None else (self.seed + index) % _INT64,
            prompt_logprobs=self.prompt_logprobs if index == 0 else None,
        )

    def _check_numbers(self) -> None:
        _number("temperature", self.temperature, 0, 2)
        if GREEDY_BELOW <= self.temperature < _COOLEST:
            log.warning("temperature %g is raised to %g: below, logits overflow", self.temperature, _COOLEST)
            object.__setattr__(self, "temperature", _COOLEST)
        _number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            _refuse("top_p", self.top_p, "above 0")
        _number("min_p", self.min_p, 0, 1)
        _number("presence_penalty", self.presence_penalty, -2, 2)
        _number("frequency_penalty", self.frequency_penalty, -2, 2)
        _number("repetition_penalty", self.repetition_penalty, 0, 1e6)
        if self.repetition_penalty == 0:
            _refuse("repetition_penalty", self.repetition_penalty, "above 0")

    def _check_counts(self) -> None:
        _count("n", self.n, 1, MAX_CHOICES)
        if self.n > 1 and self.is_greedy:
            _refuse("n", self.n, "1 where temperature is 0: greedy answers are all the same")
        if self.best_of is not None:
            _count("best_of", self.best_of, 1, MAX_CHOICES)
            if self.best_of != self.n:
                raise UnsupportedError(f"best_of: {self.best_of} must equal n, which is {self.n}", param="best_of")
        _count("top_k", self.top_k, -1, (1 << 31) - 1)
        if self.seed is not None:
            _count("seed", self.seed, -_INT64, _INT64 - 1)
        if self.seed == -1:
            object.__setattr__(self, "seed", None)
        if self.max_tokens is not None:
            _count("max_tokens", self.max_tokens, 1, _INT64 - 1)
        _count("min_tokens", self.min_tokens, 0, _INT64 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            _refuse("min_tokens", self.min_tokens, f"at most max_tokens, which is {self.max_tokens}")
        for name in ("logprobs", "prompt_logprobs", "thinking_token_budget"):
            if (value := getattr(self, name)) is not None:
                _count(name, value, -1, (1 << 31) - 1)
        if self.thinking_token_budget == -1:
            object.__setattr__(self, "thinking_token_budget", None)

    def _check_lists(self) -> None:
        stop = _strings("stop", self.stop)
        if len(stop) > MAX_STOPS or any(not 0 < len(text) <= MAX_STOP_CHARS for text in stop):
            limits = f"at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters"
            _refuse("stop", self.stop, limits)
        bad = _strings("bad_words", self.bad_words)
        if any(not word.strip() for word in bad) or len(bad) > MAX_NAMED_IDS:
            _refuse("bad_words", self.bad_words, f"at most {MAX_NAMED_IDS} words, none of them blank")
        named = _ids("logprob_token_ids", self.logprob_token_ids)
        if len(named) > MAX_NAMED_IDS:
            _refuse("logprob_token_ids", f"{len(named)} ids", f"at most {MAX_NAMED_IDS}")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "bad_words", bad)
        object.__setattr__(self, "logprob_token_ids", named)
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.allowed_token_ids is not None:
            allowed = _ids("allowed_token_ids", self.allowed_token_ids)
            if not allowed:
                _refuse("allowed_token_ids", self.allowed_token_ids, "at least one id; leave it out to allow all")
            object.__setattr__(self, "allowed_token_ids", allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """Keep the `beam_width` likeliest continuations at every token. Names follow vLLM.

    A finished beam's score is its cumulative log-probability / length ** length_penalty.
    """

    beam_width: int
    max_tokens: int = 16
    ignore_eos: bool = False
    temperature: float = 0.0
    """Divides the logits before log-probabilities are taken; 0 leaves them as they are."""
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    """Whether the token that ends a text is part of it."""
    repetition_penalty: float = 1.0
    """Multiplies the log-probabilities of tokens a beam holds already; as transformers counts it in a beam search."""

    def __post_init__(self) -> None:
        _count("beam_width", self.beam_width, 1, 64)
        _count("max_tokens", self.max_tokens, 1, _INT64 - 1)
        _number("temperature", self.temperature, 0, 2)
        _number("length_penalty", self.length_penalty, -10, 10)
        _number("repetition_penalty", self.repetition_penalty, 1, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingParams:
    """What a pooling request wants: one vector for the prompt, or one per token."""

    task: Literal["embed", "token_embed"] = "embed"
    dimensions: int | None = None
    """Keep so many of the first numbers; for models trained to be cut (Matryoshka) only."""
    normalize: bool = True
    """Whether vectors have length one."""

    def __post_init__(self) -> None:
        if self.task not in ("embed", "token_embed"):
            raise UnsupportedError(f"task: {self.task!r} is not supported; use embed or token_embed", param="task")
        if self.dimensions is not None:
            _count("dimensions", self.dimensions, 1, (1 << 31) - 1)


@dataclass(frozen=True, slots=True)
class SpeakingPrompts:
    """How a model was trained to be asked to speak: wordings of messages, with the template's variables for it.

    read, read_as: a user message that asks to read {text} aloud, the second as {instructions} say; empty where a model
    takes none. reader, assistant: a system message with {audio}, the recording of the voice to read or to answer in;
    empty where a model is shown none.
    """

    read: str = "{text}"
    read_as: str = ""
    reader: str = ""
    assistant: str = ""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])


# ---- one value ----------------------------------------------------------------------------------------------------


def _refuse(name: str, value: Any, wanted: str) -> None:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    raise RequestError(f"{name}: must be {wanted}; got {shown}", param=name)


def _number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(name, value, "a finite number")
    if not low <= value <= high:
        _refuse(name, value, f"from {low:g} to {high:g}")


def _count(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(name, value, "a whole number")
    if not low <= value <= high:
        _refuse(name, value, f"from {low} to {high}" if high < _INT64 - 1 else f"at least {low} and a 64-bit number")


def _strings(name: str, value: Any) -> tuple[str, ...]:
    """A text, a list of texts or None as a tuple."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        _refuse(name, value, "a text or a list of texts")
    return tuple(value)


def _ids(name: str, value: Any) -> tuple[int, ...]:
    """Token ids without repetitions, in order (but a sequence to be matched keeps all of them)."""
    if value is None:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        _refuse(name, value, "a list of token ids")
    for item in value:
        _count(name, item, 0, (1 << 31) - 1)
    return tuple(value) if name.endswith(".after") else tuple(dict.fromkeys(value))


def _biases(value: Any) -> dict[int, float]:
    """Token ids, also written as text as in JSON, to numbers within [-100, 100]."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > MAX_BIASES:
        _refuse("logit_bias", value, f"a map of at most {MAX_BIASES} token ids to numbers")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        try:
            token = int(key)
        except (TypeError, ValueError):
            raise RequestError(f"logit_bias: {key!r} is no token id", param="logit_bias") from None
        _count("logit_bias", token, 0, (1 << 31) - 1)
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
            _refuse("logit_bias", bias, "finite numbers")
        biases[token] = min(max(float(bias), -100.0), 100.0)
    return biases


def _json_text(name: str, value: Any) -> str:
    """JSON as text, nested MAX_SCHEMA_DEPTH deep at most."""
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        if not isinstance(parsed, Mapping | bool):
            _refuse(name, value, "a JSON object")
        if _depth(parsed) > MAX_SCHEMA_DEPTH:
            raise RequestError(f"{name}: nested more than {MAX_SCHEMA_DEPTH} deep", param=name)
        return value if isinstance(value, str) else json.dumps(parsed, ensure_ascii=False)
    except RequestError:
        raise
    except RecursionError:
        raise RequestError(f"{name}: nested more than {MAX_SCHEMA_DEPTH} deep", param=name) from None
    except (TypeError, ValueError) as error:
        raise RequestError(f"{name}: is not JSON ({error})"[:300], param=name) from None


def _depth(value: Any) -> int:
    """How deep objects and lists nest, looked at level by level."""
    level, depth = [value], 0
    while level and depth <= MAX_SCHEMA_DEPTH:
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inner.extend(item.values())
            elif isinstance(item, list | tuple):
                inner.extend(item)
        level, depth = inner, depth + bool(inner)
    return depth


# ---- speech -------------------------------------------------------------------------------------------------------

SpeechRule = Literal["chat", "half_duplex", "duplex"]
SPEECH_RULES: tuple[SpeechRule, ...] = ("chat", "half_duplex", "duplex")


@dataclass(frozen=True, slots=True)
class SpeechSampling:
    """How codes are drawn: MiniCPM's TTSSamplingParams without those of its fields that do nothing.

    top_p and top_k of None are off. Raises RequestError for a value out of range.
    """

    temperature: float = 0.8
    top_p: float | None = 0.85
    top_k: int | None = 25
    repetition_penalty: float = 1.05
    greedy: bool = False
    """Take the likeliest code after all filters, in place of a draw."""
    seed: int | None = None
    """Of the slot's generator; None takes one that was never used."""

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("temperature", self.temperature > 0, "above 0"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not good:
                raise RequestError(f"speech {name} must be {wanted}, not {getattr(self, name)}", param=name)


@dataclass(frozen=True, slots=True)
class SpeechOptions:
    """How text is spoken while it is generated.

    voice: one of the client's voices; None makes no sound and tells codes. rule: half_duplex speaks groups of ten
    tokens as they come, chat the whole text once it is there, duplex what one unit of a session says. sampling: None is
    the checkpoint's, drawn with `seed`. codes: tell codes beside the sound, as Codes events. spoken_prompt: of a
    request, so many ids at the end of the prompt are spoken, and the answer is not. eager: of duplex, short pieces in
    every unit, not only in a turn's first.
    """

    voice: str | None = "default"
    rule: SpeechRule = "half_duplex"
    sampling: SpeechSampling | None = None
    codes: bool = False
    spoken_prompt: int = 0
    eager: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.rule not in SPEECH_RULES:
            raise RequestError(f"no speech rule {self.rule!r}; known: {', '.join(SPEECH_RULES)}", param="rule")
        if self.spoken_prompt < 0:
            raise RequestError(f"spoken_prompt must be at least 0, not {self.spoken_prompt}", param="spoken_prompt")


# ---- live sessions ------------------------------------------------------------------------------------------------

Window = Literal["slide", "context", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """How a live session listens and speaks. None is the model's own value.

    window: when the context is full, forget the oldest units, keep their words as text, or end. listen_bias multiplies
    the odds of listening; max_tokens counts those of a unit.
    """

    instructions: str | None = None
    window: Window = "slide"
    force_listen_units: int | None = None
    """Units at the start in which the model only listens."""
    listen_bias: float = 1.0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.instructions is not None and len(self.instructions) > MAX_INSTRUCTIONS:
            raise RequestError(f"instructions: at most {MAX_INSTRUCTIONS} characters", param="instructions")
        if self.window not in get_args(Window):
            raise RequestError(f"window: {self.window!r} is none of {', '.join(get_args(Window))}", param="window")
        for name, (low, high, kinds) in _LIVE_RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
                wanted = "a whole number" if kinds is int else "a number"
                raise RequestError(f"{name} must be {wanted} from {low:g} to {high:g}, not {value!r}", param=name)


MAX_INSTRUCTIONS = 16_384
_LIVE_RANGES: dict[str, tuple[float, float, Any]] = {
    "force_listen_units": (0, 3600, int),
    "listen_bias": (0, 1e6, (int, float)),
    "temperature": (_COOLEST, 10, (int, float)),
    "top_k": (0, 1 << 20, int),
    "top_p": (0, 1, (int, float)),
    "repetition_penalty": (0.1, 10, (int, float)),
    "length_penalty": (0.1, 10, (int, float)),
    "max_tokens": (2, 256, int),
    "seed": (0, _INT64 - 1, int),
}
