"""Paged KV blocks: reference counts, and a prefix cache of full blocks found by their hash chain."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Hands out block numbers 0 .. num_blocks - 1.

    A released block that carries a hash stays findable until it is the least recently released one and somebody
    needs room. Nothing here knows what a block holds.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._refs = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._cached: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict((i, None) for i in range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that num_tokens tokens fill."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """`count` fresh blocks, or None (and no change) when there are not that many free."""
        if count > len(self._free):
            return None
        blocks: list[int] = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._refs[block] = 1
            blocks.append(block)
        return blocks

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """Blocks of the longest cached prefix of the hash chain, without taking them."""
        blocks: list[int] = []
        for value in hashes:
            block = self._cached.get(value)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody holds: taking them lowers num_free by so many."""
        return sum(self._refs[block] == 0 for block in blocks)

    def take(self, blocks: Iterable[int]) -> None:
        """Hold one more reference to each of these cached blocks."""
        for block in blocks:
            if self._refs[block] == 0:
                del self._free[block]
            self._refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give back one reference each. Later blocks of a sequence are reused before earlier ones."""
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._free[block] = None
                if self._hashes[block] is None:
                    self._free.move_to_end(block, last=False)

    def register(self, block: int, value: bytes) -> None:
        """Make a computed full block findable. The first block of a given content wins."""
        if self._hashes[block] is None and value not in self._cached:
            self._hashes[block] = value
            self._cached[value] = block

    def is_shared(self, block: int) -> bool:
        """Whether somebody else holds this held block too."""
        return self._refs[block] > 1

    def forget(self, block: int) -> None:
        """Nobody may find this block any more: its holder is about to change what it holds."""
        self._forget(block)

    def forget_all(self) -> None:
        """No block is findable any more; those that are held stay with their sequences."""
        for block in self._cached.values():
            self._hashes[block] = None
        self._cached.clear()

    def _forget(self, block: int) -> None:
        value = self._hashes[block]
        if value is not None:
            del self._cached[value]
            self._hashes[block] = None

    def check(self) -> None:
        """Raise AssertionError if a block is lost, free while held, or findable under a wrong hash (tests)."""
        for block, refs in enumerate(self._refs):
            assert refs >= 0, f"block {block}: {refs} references"
            assert (refs == 0) == (block in self._free), f"block {block} is free while held, or lost"
        for value, block in self._cached.items():
            assert self._hashes[block] == value, f"block {block} is cached under a foreign hash"
        assert sum(value is not None for value in self._hashes) == len(self._cached)
