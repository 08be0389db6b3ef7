"""The causal HiFT of minicpmo-utils 1.0.7: pieces of any size give the samples that one call would give.

M mel frames · B sounds. Sound leaves 8 frames late: 3 that the pitch looks ahead, 4 of the first convolution, and one
of the inverse STFT.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sensorium.models.token2wav.config import HOP, MELS
from sensorium.models.token2wav.hift import HARMONICS, Hift, cycles
from sensorium.models.token2wav.rows import RowPool
from sensorium.models.token2wav.weights import Weights

F0_RIGHT, PRE_RIGHT, _ISTFT_RIGHT = 3, 4, 1
DELAY = F0_RIGHT + PRE_RIGHT + _ISTFT_RIGHT
F0_LEFT = 8
HISTORY = 31
"""Frames before a sample that can change it."""
MEL_KEPT, SOURCE_KEPT = HISTORY + DELAY, HISTORY + DELAY - F0_RIGHT
"""Frames that a stream keeps at most, of its mel and of its source."""
_SPECTRA_PER_FRAME = HOP // 4


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a stream is. start: absolute number of its first kept frame.

    received, sourced, emitted: frames from there on that have come, that have a source, and whose sound has left.
    """

    start: int = 0
    received: int = 0
    sourced: int = 0
    emitted: int = 0

    def after(self, frames: int, last: bool) -> Progress:
        """With so many frames more, before anything is dropped."""
        received = self.received + frames
        sourced = received if last else max(received - F0_RIGHT, self.sourced)
        return Progress(self.start, received, sourced, received if last else max(received - DELAY, self.emitted))

    @property
    def num_dropped(self) -> int:
        """Frames at the beginning that nothing needs any more."""
        return max(0, self.emitted - HISTORY)

    def kept(self) -> Progress:
        n = self.num_dropped
        return Progress(self.start + n, self.received - n, self.sourced - n, self.emitted - n)


class CausalState:
    """A stream: its slot of the pools, and its progress."""

    def __init__(self, slot: int) -> None:
        self.slot, self.at = slot, Progress()


class CausalPools:
    """Per stream the newest rows of mel [80, 39] and of the source [36 · 480], and the phase [9] float64, in cycles."""

    def __init__(self, device: torch.device) -> None:
        self.mel = RowPool(1, (), (MELS, MEL_KEPT), device, torch.float32)
        self.source = RowPool(1, (), (SOURCE_KEPT * HOP,), device, torch.float32)
        self.phase = RowPool(1, (), (HARMONICS,), device, torch.float64)

    @property
    def all(self) -> tuple[RowPool, ...]:
        return self.mel, self.source, self.phase

    def reserve(self, streams: int) -> None:
        for pool in self.all:
            pool.reserve(streams)

    def open(self) -> CausalState:
        """A stream whose slot goes back when nobody refers to it any more."""
        rows = self.mel.allocate(1)
        for pool in (self.source, self.phase):
            pool.reserve(self.mel.rows - 1)
        self.phase.data[0][rows[0]].zero_()
        state = CausalState(rows[0])
        weakref.finalize(state, self.mel.free, rows).atexit = False
        return state


class CausalVocoder:
    def __init__(self, weights: Weights, noise: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
        """dtype: of the flow before it; with 16 bits convolutions of a GPU are float16, as exact as TF32 would be."""
        narrow = dtype != torch.float32 and weights.device.type == "cuda"
        self.hift = Hift(weights, noise, torch.float16 if narrow else torch.float32)
        self.pools = CausalPools(self.hift.device)

    def reserve(self, streams: int) -> None:
        self.pools.reserve(streams)

    @torch.inference_mode()
    def open(self) -> CausalState:
        return self.pools.open()

    def shape(self, state: CausalState) -> tuple[int, ...]:
        """Streams with equal shapes can be vocoded together."""
        return state.at.received, state.at.sourced, state.at.emitted

    @torch.inference_mode()
    def stream(self, states: Sequence[CausalState], mel: torch.Tensor, last: bool) -> torch.Tensor:
        """The next frames [B, M, 80] of streams of one shape to the samples that are final, [B, ...]."""
        before = states[0].at
        after = before.after(mel.shape[1], last)
        pools, slots = self.pools, torch.tensor([state.slot for state in states], device=self.hift.device)
        kept = pools.mel.data[0].index_select(0, slots)[:, :, : before.received]
        mel = torch.cat((kept, mel.transpose(1, 2)), 2)
        source = pools.source.data[0].index_select(0, slots)[:, : before.sourced * HOP]
        if after.sourced > before.sourced:
            source = torch.cat((source, self._source(states, slots, mel, after, last)), 1)
        sound = mel.new_zeros(len(mel), 0)
        if after.emitted > before.emitted:
            sound = self._decode(mel, source, last)[:, before.emitted * HOP : after.emitted * HOP]
        if not last:
            dropped = after.num_dropped
            pools.mel.data[0][slots, :, : after.received - dropped] = mel[:, :, dropped:]
            pools.source.data[0][slots, : (after.sourced - dropped) * HOP] = source[:, dropped * HOP :]
        for state in states:
            state.at = state.at.after(after.received - before.received, last).kept()
        return sound

    def _source(
        self, states: Sequence[CausalState], slots: torch.Tensor, mel: torch.Tensor, after: Progress, last: bool
    ) -> torch.Tensor:
        """[B, 480 · (frames not sourced yet)]; moves the phases on."""
        sourced = states[0].at.sourced
        context = min(sourced, F0_LEFT)
        f0 = self.hift.f0(mel[:, :, sourced - context :], right=F0_RIGHT if last else 0)[:, context:]
        assert f0.shape[1] == after.sourced - sourced
        phases = self.pools.phase.data[0]
        phase = (phases.index_select(0, slots)[:, None] + (cycles(f0).double() * HOP).cumsum(1)) % 1
        phases.index_copy_(0, slots, phase[:, -1])
        radians = (phase * (2 * math.pi)).float().repeat_interleave(HOP, 1)
        starts = [(state.at.start + sourced) * HOP for state in states]
        return self.hift.source(f0, radians, torch.tensor(starts, device=mel.device))

    def _decode(self, mel: torch.Tensor, source: torch.Tensor, last: bool) -> torch.Tensor:
        """Sound from the first kept frame on. Unless last, what follows `emitted` is not final."""
        spectrum = self.hift.spectrum(source)
        if last:
            return self.hift.decode(self.hift.pre(mel, 0, PRE_RIGHT), spectrum)
        heard = mel[:, :, : source.shape[1] // HOP]
        return self.hift.decode(self.hift.pre(heard, 0, 0), spectrum[..., : -PRE_RIGHT * _SPECTRA_PER_FRAME])
