"""Spoken answers of the chat door: their sound while they grow, and what they said while clients may name them."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import pybase64

from sensorium.media.encode import SoundFormat, encode
from sensorium.types import Sound

KEPT_S = 3600
"""How long an answer may be named by its id."""
MAX_KEPT, MAX_CHARS = 1024, 4 << 20


class SaidBefore:
    """Transcripts of spoken answers by id, the newest of them. An id says nothing to another key than its own."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, int, str]] = OrderedDict()
        self._num_chars = 0

    def keep(self, owner: str, answer: SpokenAnswer) -> None:
        self._kept[answer.id] = (owner, answer.expires_at, answer.transcript)
        self._num_chars += len(answer.transcript)
        while len(self._kept) > MAX_KEPT or self._num_chars > MAX_CHARS:
            _, (_, _, oldest) = self._kept.popitem(last=False)
            self._num_chars -= len(oldest)

    def recall(self, ident: str, owner: str) -> str | None:
        whose, expires_at, transcript = self._kept.get(ident, ("", 0, ""))
        return transcript if whose == owner and time.time() < expires_at else None


@dataclass(slots=True)
class SpokenAnswer:
    """One answer that is heard. format: of the whole; a stream is of bare samples. keep: is given it at its end."""

    format: SoundFormat
    keep: Callable[[SpokenAnswer], None]
    id: str = field(default_factory=lambda: f"audio_{uuid.uuid4().hex[:24]}")
    expires_at: int = field(default_factory=lambda: int(time.time()) + KEPT_S)
    transcript: str = ""
    data: str = ""
    """The whole sound as base64, once it is encoded."""
    _pieces: list[bytes] = field(default_factory=list[bytes])

    def hear(self, number: int, event: Sound) -> None:
        """See Generation."""
        self._pieces.append(event.pcm)

    def take_sound(self) -> str:
        """What came since the last call, as base64 of samples."""
        pieces = b"".join(self._pieces)
        self._pieces.clear()
        return pybase64.b64encode(pieces).decode()

    def encode(self) -> None:
        """Set `data`. Takes a while."""
        self.data = pybase64.b64encode(encode(b"".join(self._pieces), self.format)).decode()
