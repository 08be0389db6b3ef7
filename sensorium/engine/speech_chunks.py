"""Codes on their way from the speech LM to the codec: what is held back, and how pieces are cut. 25 codes are 1 s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.engine.speech_rules import RuleName

SILENCE = 4218
"""The code of silence."""
LOOKAHEAD = 3
BLOCK = 25
_FIRST = 8
"""Codes that a turn's first unit of full duplex needs for a piece."""


@dataclass(frozen=True, slots=True)
class Block:
    """One piece for the codec. Unless last, its final LOOKAHEAD codes are given again with the next."""

    codes: tuple[int, ...]
    last: bool = False


class Chunks:
    """The codes of one speaker, turn after turn. Source: speech.md 4.5 and 5.3, duplex.md 4.4.

    chat and half_duplex: pieces of BLOCK + LOOKAHEAD as soon as they are full. duplex: cut once a call is over, and
    those of a turn's first call may be short, so that sound begins early; with `eager` those of every call, as the
    demo's service does. All but chat begin a turn with LOOKAHEAD codes of silence.
    """

    def __init__(self, rule: RuleName, *, eager: bool = False) -> None:
        self._rule, self._eager = rule, eager
        self.reset()

    def reset(self) -> None:
        """A turn is over or cut off."""
        self.codes = [] if self._rule == "chat" else [SILENCE] * LOOKAHEAD
        self.is_first = True
        """Whether the turn's first call is not over yet."""

    def take(self, codes: Sequence[int], *, over: bool, ends: bool) -> list[Block]:
        """More codes of a call -> pieces. over: those were its last; ends: and the last of the turn."""
        self.codes += codes
        if self._rule == "duplex" and not over:
            return []
        shortest = BLOCK + LOOKAHEAD
        if self._rule == "duplex" and (self.is_first or self._eager):
            shortest = _FIRST
        blocks: list[Block] = []
        while len(self.codes) >= shortest:
            blocks.append(self._block())
        self.is_first = self.is_first and not over
        if over and ends:
            blocks.append(Block(tuple(self.codes), last=True))
            self.reset()
        return blocks

    def _block(self) -> Block:
        count = min(BLOCK + LOOKAHEAD, len(self.codes))
        block = Block(tuple(self.codes[:count]))
        del self.codes[: count - LOOKAHEAD]
        return block
