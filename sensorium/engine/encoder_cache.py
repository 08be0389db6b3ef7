"""Index of encoded media: which rows are (or will be after this step) on the device, who needs them, what to drop."""

from __future__ import annotations

from collections import OrderedDict


class EncoderCacheIndex:
    """Keys with their size in bytes, in order of last use. Entries that a sequence holds are never dropped.

    The index decides; the runner keeps the tensors and drops those listed by `take_evicted`.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        self._holders: dict[bytes, set[str]] = {}
        self._evicted: list[bytes] = []

    def __contains__(self, key: bytes) -> bool:
        return key in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def hold(self, key: bytes, holder: str) -> None:
        """Mark a present entry as needed by `holder`."""
        self._sizes.move_to_end(key)
        self._holders.setdefault(key, set()).add(holder)

    def reserve(self, key: bytes, size: int, holder: str) -> bool:
        """Make room for a new entry and hold it; False (and no change) if held entries leave too little room."""
        room = self.capacity_bytes - self.used_bytes
        drop: list[bytes] = []
        for old, taken in self._sizes.items() if room < size else ():
            if not self._holders.get(old):
                room += taken
                drop.append(old)
            if room >= size:
                break
        if room < size:
            return False
        for old in drop:
            self.discard(old)
        self._sizes[key] = size
        self.used_bytes += size
        self.hold(key, holder)
        return True

    def release(self, key: bytes, holder: str) -> None:
        holders = self._holders.get(key)
        if holders is not None:
            holders.discard(holder)
            if not holders:
                del self._holders[key]

    def discard(self, key: bytes) -> None:
        """Drop an entry, e.g. one whose encoding failed."""
        self.used_bytes -= self._sizes.pop(key)
        self._holders.pop(key, None)
        self._evicted.append(key)

    def forget_idle(self) -> None:
        """Drop what nobody holds."""
        for key in [key for key in self._sizes if not self._holders.get(key)]:
            self.discard(key)

    def take_evicted(self) -> list[bytes]:
        """Keys dropped since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    @property
    def num_holds(self) -> int:
        return sum(map(len, self._holders.values()))
