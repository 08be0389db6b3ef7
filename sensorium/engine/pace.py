"""How many tokens of prompts a step may compute beside decodes, so that streams which run keep their pace."""

from __future__ import annotations

from collections import deque
from statistics import median

_REMEMBERED = 5
# By so many sequences, or such a part of them, steps may differ and still take as long.
_NEAR, _NEAR_PART = 4, 0.25
_SLOWER, _FASTER = 0.75, 1.1
_LONGEST_WAIT_S = 1.0


class Pace:
    """A step with decodes and prompts is to take at most `ratio` times as long as one with as many decodes alone.

    How long a step takes is measured. Steps of decodes alone show what the ratio is of: when their number has changed
    so much that this is unknown, one is asked for. The number of prompt tokens follows what steps with both take.
    A crowd of prompts that would need more than a second that way has whole steps: every stream pauses, but few
    times.
    """

    def __init__(self, ratio: float, fewest: int, most: int) -> None:
        """fewest, most: prompt tokens of a step with decodes; prompts are to get on whatever is measured."""
        self.ratio = ratio
        self._fewest, self._most = min(fewest, most), most
        self._tokens = float(self._fewest)
        self._decodes = 0
        self._alone_s: deque[float] = deque(maxlen=_REMEMBERED)
        """Seconds of the last steps of about `_decodes` sequences and nothing else."""

    def prompt_tokens(self, decodes: int, waiting: int) -> int:
        """The most beside so many decodes while so many wait; 0 asks for a step without, so that it can be measured."""
        if not self._knows(decodes):
            return 0
        wait_s = waiting / self._tokens * self.ratio * median(self._alone_s)
        return self._most if wait_s > _LONGEST_WAIT_S else int(self._tokens)

    def observe(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """What a step took."""
        if not decodes:
            return
        if not prompt_tokens:
            if not self._knows(decodes):
                self._alone_s.clear()
            self._decodes = decodes
            self._alone_s.append(seconds)
        elif self._knows(decodes) and prompt_tokens <= self._tokens:
            # Steps that had fewer prompt tokens than they might have had are no reason to allow more.
            change = self.ratio * median(self._alone_s) / max(seconds, 1e-9)
            if change < 1 or 2 * prompt_tokens > self._tokens:
                change = min(max(change, _SLOWER), _FASTER)
                self._tokens = min(max(self._tokens * change, self._fewest), self._most)

    def _knows(self, decodes: int) -> bool:
        """Whether steps of about so many decodes were measured."""
        near = max(_NEAR, int(self._decodes * _NEAR_PART))
        return bool(self._alone_s) and abs(decodes - self._decodes) <= near
