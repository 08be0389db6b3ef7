"""Tokens to text, one at a time: never half a character, never text that may turn out to be a stop string."""

from __future__ import annotations

import codecs

from sensorium.models.base import Tokenizer
from sensorium.types import SamplingParams


class Detokenizer:
    """Incremental text of one sequence.

    Bytes of an unfinished UTF-8 character wait in the decoder; a tail that could begin a stop string waits in `held`.
    """

    __slots__ = ("_decoder", "_held", "_include_stop", "_longest_stop", "_off", "_skip", "_stops", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams) -> None:
        self._tokenizer = tokenizer
        self._off = not sampling.detokenize
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._skip: frozenset[int] = tokenizer.special_ids if sampling.skip_special_tokens else frozenset()
        self._stops = sampling.stop
        self._include_stop = sampling.include_stop_str_in_output
        self._longest_stop = max(map(len, self._stops), default=0)
        self._held = ""

    def feed(self, token: int, *, may_stop: bool = True) -> tuple[str, str | None]:
        """Text now certain, and the stop string found, if any (the text then ends before it, or with it)."""
        if self._off or token in self._skip:
            return "", None
        text = self._decoder.decode(self._tokenizer.token_bytes(token))
        if not self._stops:
            return text, None
        text = self._held + text
        if may_stop:
            found = min(((text.find(stop), stop) for stop in self._stops if stop in text), default=None)
            if found is not None:
                at, stop = found
                self._held = ""
                return text[: at + len(stop) * self._include_stop], stop
        keep = self._stop_prefix(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def finish(self) -> str:
        """Whatever was held back; an unfinished character becomes U+FFFD."""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        return text

    def _stop_prefix(self, text: str) -> int:
        """Length of the longest tail of text that begins a stop string."""
        for length in range(min(self._longest_stop - 1, len(text)), 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
