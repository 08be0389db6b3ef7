"""Which rows of a full-duplex session stay in its KV cache.

The cache holds [protected rows][units]; in context mode the protected rows are [prefix][previous][suffix], where
"previous" is the text of the units that were dropped. Rows that stay keep their values; their keys are turned to the
positions that they move to, so positions have no gaps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sensorium.errors import RequestError
from sensorium.models.minicpm_duplex_record import UnitRecord
from sensorium.models.minicpm_duplex_sampler import check_number
from sensorium.types import Splice

Mode = Literal["off", "basic", "context"]


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """Under the names of the released code, with its defaults. Lengths count rows, of `previous` tokens."""

    sliding_window_mode: Mode = "off"
    basic_window_high_tokens: int = 8000
    basic_window_low_tokens: int = 6000
    context_previous_max_tokens: int = 500
    context_max_units: int = 24

    def __post_init__(self) -> None:
        if self.sliding_window_mode not in ("off", "basic", "context"):
            raise RequestError(
                f"sliding_window_mode is {self.sliding_window_mode!r}; write 'off', 'basic' or 'context'",
                param="sliding_window_mode",
            )
        for name in ("basic_window_high_tokens", "basic_window_low_tokens", "context_max_units"):
            check_number(name, getattr(self, name), positive=True, whole=True)
        check_number("context_previous_max_tokens", self.context_previous_max_tokens, whole=True)
        if self.basic_window_low_tokens > self.basic_window_high_tokens:
            raise RequestError(
                "basic_window_low_tokens is above basic_window_high_tokens", param="basic_window_low_tokens"
            )


@dataclass(frozen=True, slots=True)
class Protected:
    """What the window never drops. prefix_len: rows before the suffix (context mode re-computes the suffix)."""

    prefix_len: int
    suffix_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prefix_len + len(self.suffix_ids)


class Window:
    """Follows the units of one session; after each, says what to remove."""

    def __init__(
        self,
        options: WindowOptions,
        protected: Protected,
        marker_ids: Sequence[int] = (),
        special_ids: Collection[int] = (),
        spell: Callable[[Sequence[int]], str] = str,
    ) -> None:
        """marker_ids: what stands before "previous" text. special_ids: control tokens, which are not text."""
        self.options = options
        self.protected = protected
        self.units: deque[UnitRecord] = deque()
        self.previous_ids: tuple[int, ...] = ()
        self._marker = tuple(marker_ids)
        self._special = frozenset(special_ids)
        self._spell = spell
        self._num_dropped = 0
        self._num_dropped_rows = 0

    @property
    def protected_len(self) -> int:
        return self.protected.length + len(self.previous_ids)

    @property
    def length(self) -> int:
        """Rows in the cache."""
        return self.protected_len + sum(unit.length for unit in self.units)

    @property
    def previous_text(self) -> str:
        """The text that stands for dropped units, without its marker."""
        return self._spell(self.previous_ids[len(self._marker) :]) if self.previous_ids else ""

    def add(self, unit: UnitRecord) -> Splice | None:
        """A unit is over and all of its rows are computed; what to do to the cache, if anything."""
        if unit.length:
            self.units.append(unit)
        mode = self.options.sliding_window_mode
        if mode == "basic":
            return self._basic()
        return self._context() if mode == "context" else None

    def forget(self, count: int) -> None:
        """The newest units have not been."""
        for _ in range(count):
            self.units.pop()

    def will_cut(self, length: int) -> bool:
        """Whether a unit of so many rows, added now, makes the window remove something."""
        mode = self.options.sliding_window_mode
        if mode == "basic":
            return self.length + length > self.options.basic_window_high_tokens
        return mode == "context" and len(self.units) + 1 > self.options.context_max_units

    def stats(self) -> dict[str, Any]:
        """Lengths and counters, for people."""
        return {
            **asdict(self.options),
            "cache_length": self.length,
            "preserve_length": self.protected_len,
            "num_units": len(self.units),
            "num_units_dropped": self._num_dropped,
            "num_rows_dropped": self._num_dropped_rows,
            "previous_tokens": max(len(self.previous_ids) - len(self._marker), 0),
            "previous_text": self.previous_text,
        }

    def _basic(self) -> Splice | None:
        length = self.length
        if length <= self.options.basic_window_high_tokens:
            return None
        dropped = 0
        while self.units and length - dropped > self.options.basic_window_low_tokens:
            dropped += self._drop().length
        return Splice(self.protected_len, self.protected_len + dropped) if dropped else None

    def _context(self) -> Splice | None:
        before, dropped = self.protected_len, 0
        content = list(self.previous_ids[len(self._marker) :])
        known = len(content)
        while len(self.units) > self.options.context_max_units:
            unit = self._drop()
            dropped += unit.length
            if not unit.is_listen:
                content += [token_id for token_id in unit.ids if token_id not in self._special]
        if not dropped:
            return None
        if len(content) == known:
            return Splice(before, before + dropped)
        most = self.options.context_previous_max_tokens
        self.previous_ids = (*self._marker, *content[len(content) - min(len(content), most) :])
        ids = (*self.previous_ids, *self.protected.suffix_ids)
        return Splice(self.protected.prefix_len, before + dropped, ids)

    def _drop(self) -> UnitRecord:
        unit = self.units.popleft()
        self._num_dropped += 1
        self._num_dropped_rows += unit.length
        return unit
