"""The session policy that every model has: each unit is a turn, answered until the model ends it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sensorium.engine.sampler import SampleState, Unsampled, sample
from sensorium.errors import RequestError, UnsupportedError
from sensorium.models.base import Tokenizer
from sensorium.types import Decision, Outcome, SamplingParams, Unit

_REFUSED = ("stop", "bad_words", "structured_outputs", "thinking_token_budget", "logprobs", "prompt_logprobs")
_MOST_TOKENS = 256
"""Of an answer, where sampling.max_tokens says nothing."""


class TurnPolicy:
    """Samples as the session's SamplingParams say, until an end token or max_tokens. All of it is said.

    UnitDone.info: {"reason": "stop" or "length"}. Takes no options.
    """

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, options: Mapping[str, Any]) -> None:
        _refuse(options)
        for name in _REFUSED:
            if getattr(sampling, name) not in (None, ()):
                raise UnsupportedError(f"{name} does not hold in a session; leave it out", param=name)
        self._sampling = sampling
        self._most = _MOST_TOKENS if sampling.max_tokens is None else sampling.max_tokens
        self._ends = {*(() if sampling.ignore_eos else tokenizer.eos_ids), *sampling.stop_token_ids}
        self._barred = tuple({*tokenizer.eos_ids, *sampling.stop_token_ids})
        self._rng = random.Random(sampling.seed)
        self._state = SampleState(sampling, (), self._barred)
        self._reason = "stop"
        self.max_feed = self._most + 1

    def opened(self, length: int) -> None:
        """Nothing depends on it."""

    def begin(self, unit: Unit, at: int) -> None:
        _refuse(unit.options)
        self._state = SampleState(self._sampling, unit.prompt.ids, self._barred)
        self._state.rng = self._rng

    def decide(self, logits: torch.Tensor) -> Decision:
        return self.decide_all([self], logits[None])[0]

    @staticmethod
    def decide_all(policies: Sequence[TurnPolicy], logits: torch.Tensor) -> list[Decision]:
        chosen = sample(logits, [policy._state for policy in policies])
        return [policy._take(result) for policy, result in zip(policies, chosen, strict=True)]

    def _take(self, result: Any) -> Decision:
        if self._state.num_generated > self._most:  # the row of the last token has been computed
            self._reason = "length"
            return Decision(end=True)
        self._reason = "stop"
        if isinstance(result, Unsampled):  # what the parameters forbid leaves nothing to say
            return Decision(end=True)
        token, _ = result
        return Decision((token,), end=True) if token in self._ends else Decision((token,), collect=True)

    def end(self, length: int) -> Outcome:
        return Outcome({"reason": self._reason}, speech="end" if self._reason == "stop" else "stop")

    def interrupt(self, options: Mapping[str, Any]) -> tuple[int, ...]:
        _refuse(options)
        return ()

    def rewind(self, index: int) -> None:
        """It remembers nothing of earlier units."""


def _refuse(options: Mapping[str, Any]) -> None:
    if options:
        name = next(iter(options))
        raise RequestError(f"{name}: the policy 'turn' takes no options", param=name)
