"""Codes on their way from the speech LM to the vocoder: what is held back, and how blocks are cut. 25 codes are 1 s."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

SILENCE = 4218
"""The code of silence."""
LOOKAHEAD = 3
BLOCK = 25
RATE = 24_000


@dataclass(frozen=True, slots=True)
class Block:
    """One call of the vocoder."""

    codes: tuple[int, ...]
    last: bool = False


def _silence() -> list[int]:
    return [SILENCE] * LOOKAHEAD


@dataclass(slots=True)
class CodeBuffer:
    """Codes not yet sounded. The last LOOKAHEAD of a block are given again at the head of the next one."""

    codes: list[int] = field(default_factory=_silence)

    def reset(self) -> None:
        """A turn is over or cut off: the next one starts from silence."""
        self.codes = _silence()

    def unit(self, codes: Sequence[int], *, first: bool, end_of_turn: bool) -> list[Block]:
        """The codes of one full-duplex unit -> blocks to sound. first: of the turn, which sounds short blocks too."""
        self.codes += codes
        blocks: list[Block] = []
        shortest = 8 if first else BLOCK + LOOKAHEAD
        while len(self.codes) >= shortest:
            blocks.append(self._block())
        if end_of_turn:
            if self.codes:
                blocks.append(Block(tuple(self.codes), last=True))
            self.reset()
        return blocks

    def reply(self, codes: Sequence[int], *, last: bool) -> list[Block]:
        """Codes of a half-duplex reply -> blocks of BLOCK + LOOKAHEAD; the last one is whatever is left."""
        self.codes += codes
        blocks: list[Block] = []
        while len(self.codes) >= BLOCK + LOOKAHEAD:
            blocks.append(self._block())
        if last:
            blocks.append(Block(tuple(self.codes), last=True))
            self.reset()
        return blocks

    def _block(self) -> Block:
        count = min(BLOCK + LOOKAHEAD, len(self.codes))
        block = Block(tuple(self.codes[:count]))
        self.codes = self.codes[min(BLOCK, count - LOOKAHEAD) :]
        return block


def unit_wave(waves: Sequence[np.ndarray], *, end_of_turn: bool) -> np.ndarray | None:
    """Waves [n] float32 of a unit's blocks, joined; within a turn silence in front makes up a whole second."""
    if not waves:
        return None
    wave = np.concatenate(waves).astype(np.float32, copy=False)
    missing = RATE - len(wave)
    return wave if end_of_turn or missing <= 0 else np.pad(wave, (missing, 0))


class TurnSpeech:
    """Where the speech of a full-duplex session stands: how far the turn's cache reaches, and what is held back."""

    MOST = 26
    """Codes that the speech LM may pick for a unit; the last pick is dropped."""

    def __init__(self, *, eager: bool = False) -> None:
        """eager: sound short blocks in every unit, as the demo's service does, not only in a turn's first."""
        self.buffer = CodeBuffer()
        self.position = 0
        self._eager = eager

    def bounds(self, *, end_of_turn: bool) -> tuple[int, int]:
        """Fewest and most codes of the next unit: a whole second, but for the first and the last of a turn."""
        return (0 if end_of_turn or self.position == 0 else self.MOST), self.MOST

    def take(self, condition_len: int, codes: Sequence[int], *, end_of_turn: bool) -> list[Block]:
        """The codes that a unit's condition rows gave -> blocks to sound."""
        first = self.position == 0 or self._eager
        self.position += condition_len + len(codes)
        blocks = self.buffer.unit(codes, first=first, end_of_turn=end_of_turn)
        if end_of_turn:
            self.reset()
        return blocks

    def reset(self) -> None:
        """The turn is over, or cut off: the next one starts on an empty cache, from silence."""
        self.position = 0
        self.buffer.reset()
