"""What is kept of a session for the case that its engine is lost: enough to go on in another one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sensorium.server.live.units import LiveUnit

MAX_UNITS, MAX_TEXT = 8, 2000
"""Newest units, and characters of what was said last. Pictures are kept of the newest unit alone."""


@dataclass(slots=True)
class History:
    _units: deque[LiveUnit] = field(default_factory=lambda: deque[LiveUnit](maxlen=MAX_UNITS))
    _said: str = ""

    def add(self, unit: LiveUnit, said: str) -> None:
        """A unit is over, and these words were said in it."""
        if self._units:
            self._units[-1].frames.clear()
        self._units.append(unit)
        self._said = (self._said + said)[-MAX_TEXT:]

    def units(self) -> Iterator[LiveUnit]:
        """What was heard last; the first of them also reads what was said."""
        for number, unit in enumerate(self._units):
            told = [f"(You have said so far: {self._said.strip()})"] if not number and self._said.strip() else []
            yield replace(unit, texts=told + unit.texts)
