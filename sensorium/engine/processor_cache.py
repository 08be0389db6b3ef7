"""Preprocessed media kept for reuse, by content or by the caller's uuid, least recently used first out."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sensorium.inline import Pieces
from sensorium.types import Embeds, Media, MediaRef, Prepared


@dataclass(slots=True)
class CacheStats:
    queries: int = 0
    hits: int = 0
    items: int = 0
    bytes: int = 0


_LEAVES = frozenset({type(None), bool, int, float, str, bytes})


class ProcessorCache:
    """Bounded by bytes. Any thread may call it."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.stats = CacheStats()
        self._items: OrderedDict[bytes, tuple[Prepared, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Prepared | None:
        """Counts as a query, and as a use of the entry."""
        with self._lock:
            self.stats.queries += 1
            found = self._items.get(key)
            if found is None:
                return None
            self.stats.hits += 1
            self._items.move_to_end(key)
            return found[0]

    def put(self, key: bytes, prepared: Prepared) -> None:
        """Keeps the item unless it is larger than the whole cache."""
        size = array_bytes(prepared.content)
        with self._lock:
            if size > self.capacity_bytes or key in self._items:
                return
            self._items[key] = (prepared, size)
            self.stats.bytes += size
            while self.stats.bytes > self.capacity_bytes:
                _, (_, dropped) = self._items.popitem(last=False)
                self.stats.bytes -= dropped
            self.stats.items = len(self._items)

    def clear(self) -> None:
        with self._lock:
            self._items.clear()
            self.stats.items = self.stats.bytes = 0


def cache_key(namespace: str, kind: str, identity: bytes, settings: Mapping[str, Any]) -> bytes:
    """kind tells uuids, contents and modalities apart; settings are all options that shape the result."""
    key = hashlib.blake2b(digest_size=32, person=b"processor")
    for part in (namespace.encode(), kind.encode(), identity, repr(_ordered(settings)).encode()):
        key.update(len(part).to_bytes(8, "little") + part)
    return key.digest()


def array_bytes(value: Any) -> int:
    """The bytes of all arrays in a tree of dataclasses, mappings and sequences."""
    if type(value) in _LEAVES:
        return 0
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list | tuple):
        return sum([array_bytes(item) for item in value if type(item) not in _LEAVES])
    if names := _field_names(type(value)):
        fields = [getattr(value, name) for name in names]
        return sum([array_bytes(field) for field in fields if type(field) not in _LEAVES])
    return sum(map(array_bytes, value.values())) if isinstance(value, Mapping) else 0


@lru_cache(maxsize=64)
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


def _ordered(value: Any) -> Any:
    """Equal for mappings that differ in order only."""
    if isinstance(value, Mapping):
        return sorted((str(name), _ordered(item)) for name, item in value.items())
    return tuple(map(_ordered, value)) if isinstance(value, list | tuple) else value


def part_digest(part: MediaRef | Media | Embeds) -> bytes:
    """Equal for parts of equal content, however they came."""
    if not isinstance(part, MediaRef):
        return part.digest
    digest = hashlib.sha256()
    if isinstance(part.source, Mapping):
        for name, value in part.source.items():
            digest.update(f"{name} {len(value) if isinstance(value, bytes | Pieces) else repr(value)}".encode())
            _update(digest, value)
    else:
        _update(digest, part.source)
    return digest.digest()


def _update(digest: Any, value: Any) -> None:
    for data in value.parts if isinstance(value, Pieces) else (value,):
        digest.update(data if isinstance(data, bytes) else b"")
