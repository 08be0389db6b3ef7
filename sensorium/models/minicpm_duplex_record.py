"""What a full-duplex session keeps for people: its units, the sequence of tokens as text, the window's counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sensorium.types import Prompt

Spell = Callable[[Sequence[int]], str]
"""Ids to text, control tokens spelled out."""
UnitType = Literal["audio", "vision", "omni", "text"]
_MARKS = {"image": "img", "video": "img", "audio": "audio"}


@dataclass(frozen=True, slots=True)
class UnitRecord:
    """A unit that is over. length: rows from <unit> to </unit>. ids: what was collected for speech."""

    id: int
    length: int
    type: UnitType
    is_listen: bool
    ids: tuple[int, ...]
    text: str


@dataclass(slots=True)
class _Written:
    """Ids as text, and per run of media rows its modality and length."""

    parts: list[int | tuple[str, int]] = field(default_factory=list[int | tuple[str, int]])


class SessionRecord:
    """The sequence of a session, unit by unit, also of units that the window has dropped."""

    def __init__(self, spell: Spell) -> None:
        self._spell = spell
        self._units: list[_Written] = []

    def begin(self) -> None:
        self._units.append(_Written())

    def fed(self, prompt: Prompt) -> None:
        """Rows that came in: ids, with media in their spans."""
        parts, at = self._units[-1].parts, 0
        for span in prompt.spans:
            parts += prompt.ids[at : span.start]
            parts.append((_MARKS[prompt.media[span.media].modality], span.length))
            at = span.stop
        parts += prompt.ids[at:]

    def said(self, ids: Sequence[int]) -> None:
        """What the model answered, its closing tokens included."""
        self._units[-1].parts += ids

    def unit_schemas(self, include_embeddings: bool = True) -> list[str]:
        return [self._written(unit, include_embeddings) for unit in self._units]

    def session_schema(self, include_embeddings: bool = True) -> str:
        return "".join(self.unit_schemas(include_embeddings))

    def _written(self, unit: _Written, include_embeddings: bool) -> str:
        text, run = "", list[int]()
        for part in unit.parts:
            if isinstance(part, int):
                run.append(part)
                continue
            text, run = text + self._spell(run), []
            if include_embeddings:
                text += f"[{part[0]}_embed_{part[1]}]"
        return text + self._spell(run)
