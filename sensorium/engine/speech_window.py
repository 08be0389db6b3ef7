"""What a speech call finds in its slot's KV cache: the attention types of MiniCPM's half duplex.

Only calls of the half-duplex rule look at the attention type; all others see their whole turn. Source: speech.md 1.5.
L layers · K key/value heads · D head dim · n rows · E width
"""

from __future__ import annotations

import torch

from sensorium.engine.speech_slot import Slot
from sensorium.models.base import SpeechModel


class SpeechWindow:
    """memory: the cache of all slots, [L, 2, blocks, block_size, K, D]; slot s has the rows from s * max_len on."""

    def __init__(self, model: SpeechModel, memory: torch.Tensor, max_len: int) -> None:
        self._model, self._max_len = model, max_len
        self._rows = memory.flatten(2, 3)
        self._kind = model.config.attention_type
        self._window = model.config.token_window

    def slides(self, slot: Slot) -> bool:
        """Whether the slot forgets row by row."""
        return self._kind == "sliding_window" and slot.rule.scope == "turn" and self._window < self._max_len

    def begin(self, slot: Slot, rows: torch.Tensor) -> torch.Tensor:
        """Make room for a call with condition rows [n, E]. What has to be fed for it, [m, E]."""
        kind = self._kind if slot.rule.scope == "turn" else "full_attention"
        if kind == "reindex":
            self._reindex(slot)
        restarts = kind == "sliding_recompute" and slot.previous is not None
        return self._restart(slot, rows) if restarts or not self._fits(slot, len(rows)) else rows

    def room(self, slot: Slot, fed: int) -> int:
        """How many codes a call may pick that has yet to feed so many rows; the last pick is never fed."""
        return self._max_len if self.slides(slot) else self._max_len - slot.length - fed + 1

    def cut(self, slots: list[Slot]) -> None:
        """Drop what has left the windows of slots that slide.

        Attention does not care in which order rows lie, as keys are rotated already: those beyond the window move to
        where the oldest lay.
        """
        source: list[int] = []
        target: list[int] = []
        for slot in slots:
            over = slot.length - self._window
            if over <= 0 or not self.slides(slot):
                continue
            start = slot.index * self._max_len
            moved = range(max(0, over - self._window), over)
            source += [start + self._window + i for i in moved]
            target += [start + (slot.oldest + i) % self._window for i in moved]
            slot.oldest = (slot.oldest + over) % self._window
            slot.length = self._window
        if source:
            to, at = (torch.tensor(rows, device=self._rows.device) for rows in (target, source))
            self._rows.index_copy_(2, to, self._rows.index_select(2, at))

    def _fits(self, slot: Slot, fed: int) -> bool:
        """Whether the call has room for what it may say, or for half a slot of it."""
        assert slot.call is not None
        wanted = 1 if self.slides(slot) else min(slot.call.max_new, self._max_len // 2)
        return slot.length == 0 or slot.length + fed + wanted - 1 <= self._max_len

    def _restart(self, slot: Slot, rows: torch.Tensor) -> torch.Tensor:
        """Go on from the previous call alone, computed anew; without it where even that leaves no room."""
        slot.length = slot.position = slot.oldest = 0
        previous, slot.first = slot.previous, None
        if previous is None or not self._fits_whole(slot, previous.length + len(rows)):
            return rows
        slot.first = previous
        codes = torch.tensor(previous.codes, dtype=torch.int64, device=rows.device)
        return torch.cat((previous.rows, self._model.embed(codes), rows))

    def _fits_whole(self, slot: Slot, fed: int) -> bool:
        assert slot.call is not None
        return fed + min(slot.call.max_new, self._max_len // 2) - 1 <= self._max_len

    def _reindex(self, slot: Slot) -> None:
        """Keep the turn's first call and its last, and turn the keys of the last as if it followed the first.

        Row i of it is turned by i positions too far: the reference adds the row's number to the shift.
        """
        if slot.first is None or slot.previous is None or slot.first is slot.previous:
            return
        sink, last = slot.first.length, slot.previous.length
        if slot.length <= sink + last:
            return
        start = slot.index * self._max_len
        moved = self._rows[:, :, start + slot.length - last : start + slot.length].clone()
        by = torch.arange(last, device=moved.device) + (sink + last - slot.length)
        moved[:, 0] = self._model.rotate(moved[:, 0], by)
        self._rows[:, :, start + sink : start + sink + last] = moved
        slot.length = slot.position = sink + last
