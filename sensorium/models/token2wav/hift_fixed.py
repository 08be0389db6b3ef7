"""Pieces of the causal vocoder in one shape for each size of batch, on a GPU as CUDA graphs: hundreds of launches, one.

A stream's frames begin at the left of fixed room; behind them is anything, as nothing sees ahead of what has come. What
depends on where a stream is comes with the numbers of its row.
B streams · M = 50 new frames at most · N = 89 frames of room, the kept ones and the new
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from sensorium.models.token2wav.config import FRAMES_PER_S, HOP
from sensorium.models.token2wav.fixed import FixedShapes, batch_for
from sensorium.models.token2wav.hift import EDGE, cycles
from sensorium.models.token2wav.hift_causal import (
    F0_LEFT,
    F0_RIGHT,
    HISTORY,
    MEL_KEPT,
    PRE_RIGHT,
    SOURCE_KEPT,
    CausalState,
    CausalVocoder,
    Progress,
)

_NEW = FRAMES_PER_S
_ROOM = MEL_KEPT + _NEW
_NEW_SOURCE = _NEW + F0_RIGHT
"""New frames of the source, at most: those of the last piece."""
_HEARD = _ROOM - HISTORY
"""Frames whose sound leaves, at most."""


class FixedVocoder:
    def __init__(self, vocoder: CausalVocoder) -> None:
        self._vocoder, self._hift, self._pools = vocoder, vocoder.hift, vocoder.pools
        self._nobody = self._pools.open()
        self._shapes = FixedShapes(self._pools.all, self._hift.device)

    @torch.inference_mode()
    def stream(
        self, states: Sequence[CausalState], mel: torch.Tensor, counts: Sequence[int], last: Sequence[bool]
    ) -> tuple[torch.Tensor, list[int]]:
        """The next counts[i] frames of mel [B, 50, 80] to sound [B, 480 · 58], and how many samples each stream has."""
        size = batch_for(len(states))
        blank = np.stack([_row(self._nobody.slot, Progress(), Progress().after(_NEW, last=False))] * size)
        numbers = blank.copy()
        ends = [state.at.after(count, over) for state, count, over in zip(states, counts, last, strict=True)]
        for i, (state, end) in enumerate(zip(states, ends, strict=True)):
            numbers[i] = _row(state.slot, state.at, end)
        mel = F.pad(mel, (0, 0, 0, 0, 0, size - len(mel)))
        sound = self._shapes.run(size, self._compute, blank, numbers, mel)
        samples = [(end.emitted - state.at.emitted) * HOP for state, end in zip(states, ends, strict=True)]
        for state, end in zip(states, ends, strict=True):
            state.at = end.kept()
        return sound[: len(states)], samples

    def _compute(self, numbers: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        slots, kept, received, first, sourced, emitted, dropped, at = numbers.unbind(1)
        slots, pools, hift = slots.contiguous(), self._pools, self._hift
        held = pools.mel.data[0].index_select(0, slots)
        mel = _joined(held, mel.transpose(1, 2), kept, _ROOM)
        mel = mel.masked_fill(_places(_ROOM, mel) >= received[:, None, None], 0.0)
        # Zeros behind the end, which the last piece is the only one to see.
        ahead = F.pad(mel, (0, PRE_RIGHT))
        source = self._source(slots, ahead, first, sourced, at)
        spectrum = hift.spectrum(source, ahead=EDGE)
        sound = hift.decode(hift.pre(ahead, 0, 0), spectrum, sourced)
        pools.mel.data[0].index_copy_(0, slots, _window(mel, dropped, MEL_KEPT))
        pools.source.data[0].index_copy_(0, slots, _window(source[:, None], dropped * HOP, SOURCE_KEPT * HOP)[:, 0])
        return _window(sound[:, None], emitted * HOP, _HEARD * HOP)[:, 0]

    def _source(
        self, slots: torch.Tensor, mel: torch.Tensor, first: torch.Tensor, sourced: torch.Tensor, at: torch.Tensor
    ) -> torch.Tensor:
        """mel [B, 80, N + 4] to the source [B, 480 · N + 8], reflected at each end; moves the phases on."""
        hift, phases = self._hift, self._pools.phase.data[0]
        begin = (first - F0_LEFT).clamp(min=0)
        f0 = hift.f0(_window(mel, begin, F0_LEFT + _NEW_SOURCE + F0_RIGHT))
        f0 = _window(f0[:, None], first - begin, _NEW_SOURCE)[:, 0]
        before = phases.index_select(0, slots)[:, None]
        phase = (before + (cycles(f0).double() * HOP).cumsum(1)) % 1
        passed = torch.cat((before, phase), 1).transpose(1, 2)
        phases.index_copy_(0, slots, _window(passed, sourced - first, 1)[..., 0])
        radians = (phase * (2 * math.pi)).float().repeat_interleave(HOP, 1)
        new, held = hift.source(f0, radians, at), self._pools.source.data[0].index_select(0, slots)
        source = _joined(held[:, None], new[:, None], first * HOP, _ROOM * HOP + EDGE)
        end, place = (sourced * HOP)[:, None, None], _places(source.shape[2], source)
        mirrored = torch.where(place < end, place, 2 * (end - 1) - place).clamp(min=0)
        return source.gather(2, mirrored)[:, 0]


def _row(slot: int, before: Progress, after: Progress) -> np.ndarray:
    at = (before.start + before.sourced) * HOP
    ends = before.received, after.received, before.sourced, after.sourced
    return np.array([slot, *ends, before.emitted, after.num_dropped, at], np.int64)


def _places(count: int, like: torch.Tensor) -> torch.Tensor:
    """[1, 1, count]."""
    return torch.arange(count, device=like.device)[None, None]


def _joined(held: torch.Tensor, new: torch.Tensor, counts: torch.Tensor, room: int) -> torch.Tensor:
    """counts[i] columns of held [B, C, h], then those of new [B, C, n], as [B, C, room]; the rest is anything."""
    wide = torch.cat((held, new), 2)
    place, counts = _places(room, held), counts[:, None, None]
    at = torch.where(place < counts, place, place + held.shape[2] - counts).clamp(max=wide.shape[2] - 1)
    return wide.gather(2, at.expand(-1, wide.shape[1], -1))


def _window(x: torch.Tensor, starts: torch.Tensor, count: int) -> torch.Tensor:
    """Columns starts[i], ... of x [B, C, n], as [B, C, count]; what is behind the end is the last column."""
    at = (starts[:, None, None] + _places(count, x)).clamp(max=x.shape[2] - 1)
    return x.gather(2, at.expand(-1, x.shape[1], -1))
