"""What a sequence's tokens become: text, and whether they end it."""

from __future__ import annotations

from dataclasses import dataclass

from sensorium.engine.detokenizer import Detokenizer
from sensorium.engine.grammar import Matcher
from sensorium.engine.sequence import Sequence
from sensorium.types import FinishReason


@dataclass(slots=True)
class Output:
    """What is kept of one sequence for that."""

    detokenizer: Detokenizer
    eos_ids: frozenset[int]
    max_tokens: int
    matcher: Matcher | None = None

    def ends_next(self, seq: Sequence) -> bool:
        """Whether its next token is the last one it may have."""
        return seq.num_generated + 1 >= self.max_tokens

    def take(self, seq: Sequence, token: int) -> tuple[str, FinishReason | None, int | str | None]:
        """The text of the sequence's newest token; why it ends, if it does; the stop token or string it ends with."""
        sampling = seq.request.sampling
        reason: FinishReason | None = None
        stop_reason: int | str | None = None
        may_stop = seq.num_generated >= sampling.min_tokens
        if may_stop and (token in self.eos_ids or token in sampling.stop_token_ids):
            reason, text = "stop", ""
            stop_reason = None if token in self.eos_ids else token
            if sampling.include_stop_str_in_output and stop_reason is not None:
                text, _ = self.detokenizer.feed(token, may_stop=False)
        else:
            text, stop_reason = self.detokenizer.feed(token, may_stop=may_stop)
            if stop_reason is not None or (self.matcher is not None and self.matcher.is_complete):
                reason = "stop"
            elif seq.num_generated >= self.max_tokens:
                reason = "length"
        if reason is not None and not isinstance(stop_reason, str):
            text += self.detokenizer.finish()
        return text, reason, stop_reason
