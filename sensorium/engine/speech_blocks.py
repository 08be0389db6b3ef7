"""How the codes of a half-duplex reply leave: in blocks of a second, over the borders of its text chunks."""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 25
"""Codes of a block: one second of sound."""


class CodeBlocks:
    """Collects the codes of one reply. Source: speech.md 1.6."""

    def __init__(self, size: int = BLOCK) -> None:
        self._size = size
        self._waiting: list[int] = []

    def add(self, codes: Sequence[int]) -> list[list[int]]:
        """The blocks that are full now. What is left waits for the next text chunk."""
        self._waiting += codes
        full = len(self._waiting) // self._size * self._size
        blocks = [self._waiting[i : i + self._size] for i in range(0, full, self._size)]
        del self._waiting[:full]
        return blocks

    def finish(self) -> list[int]:
        """The last block, once the text is over or cut off. It may be empty: that ends the reply too."""
        last, self._waiting = self._waiting, []
        return last
