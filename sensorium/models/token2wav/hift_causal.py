"""The causal HiFT of minicpmo-utils 1.0.7: pieces of any size give the samples that one call would give.

M mel frames · B sounds. Sound leaves 8 frames late: 3 that the pitch looks ahead, 4 of the first convolution, and one
of the inverse STFT.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sensorium.models.token2wav.config import HOP, MELS
from sensorium.models.token2wav.hift import HARMONICS, Hift, cycles
from sensorium.models.token2wav.weights import Weights

_F0_RIGHT, _PRE_RIGHT, _ISTFT_RIGHT = 3, 4, 1
DELAY = _F0_RIGHT + _PRE_RIGHT + _ISTFT_RIGHT
_F0_LEFT = 8
_HISTORY = 31
"""Frames before a sample that can change it."""
_SPECTRA_PER_FRAME = HOP // 4


@dataclass(slots=True)
class CausalState:
    """mel [80, <= 39] ends where the stream does, source [<= 36 · 480] three frames earlier; phase [9] float64, cycles.

    start: absolute number of their first frame. emitted: frames from there on whose sound has left.
    """

    mel: torch.Tensor
    source: torch.Tensor
    phase: torch.Tensor
    start: int = 0
    emitted: int = 0

    @property
    def sourced(self) -> int:
        return len(self.source) // HOP


class CausalVocoder:
    def __init__(self, weights: Weights, noise: torch.Tensor) -> None:
        self.hift = Hift(weights, noise)

    def open(self) -> CausalState:
        device = self.hift.device
        return CausalState(
            torch.zeros(MELS, 0, device=device),
            torch.zeros(0, device=device),
            torch.zeros(HARMONICS, device=device, dtype=torch.float64),
        )

    def shape(self, state: CausalState) -> tuple[int, ...]:
        """Streams with equal shapes can be vocoded together."""
        return state.mel.shape[1], state.sourced, state.emitted

    @torch.inference_mode()
    def stream(self, states: Sequence[CausalState], mel: torch.Tensor, last: bool) -> torch.Tensor:
        """The next frames [B, M, 80] of streams of one shape to the samples that are final, [B, ...]."""
        first = states[0]
        mel = torch.cat((torch.stack([state.mel for state in states]), mel.transpose(1, 2)), 2)
        received = mel.shape[2]
        sourced = received if last else max(received - _F0_RIGHT, first.sourced)
        emitted = received if last else max(received - DELAY, first.emitted)
        source = torch.stack([state.source for state in states])
        if sourced > first.sourced:
            source = torch.cat((source, self._source(states, mel, last)), 1)
        sound = mel.new_zeros(len(mel), 0)
        if emitted > first.emitted:
            sound = self._decode(mel, source, last)[:, first.emitted * HOP : emitted * HOP]
        dropped = max(0, emitted - _HISTORY)
        mel, source = mel[:, :, dropped:].clone(), source[:, dropped * HOP :].clone()
        for i, state in enumerate(states):
            state.mel, state.source = mel[i], source[i]
            state.start, state.emitted = state.start + dropped, emitted - dropped
        return sound

    def _source(self, states: Sequence[CausalState], mel: torch.Tensor, last: bool) -> torch.Tensor:
        """[B, 480 · (frames not sourced yet)]; moves the phases on."""
        sourced = states[0].sourced
        context = min(sourced, _F0_LEFT)
        f0 = self.hift.f0(mel[:, :, sourced - context :], right=_F0_RIGHT if last else 0)[:, context:]
        before = torch.stack([state.phase for state in states])[:, None]
        phase = (before + (cycles(f0).double() * HOP).cumsum(1)) % 1
        for i, state in enumerate(states):
            state.phase = phase[i, -1].clone()
        radians = (phase * (2 * math.pi)).float().repeat_interleave(HOP, 1)
        return self.hift.source(f0, radians, [(state.start + sourced) * HOP for state in states])

    def _decode(self, mel: torch.Tensor, source: torch.Tensor, last: bool) -> torch.Tensor:
        """Sound from the first kept frame on. Unless last, what follows `emitted` is not final."""
        spectrum = self.hift.spectrum(source)
        if last:
            return self.hift.decode(self.hift.pre(mel, 0, _PRE_RIGHT), spectrum)
        heard = mel[:, :, : source.shape[1] // HOP]
        return self.hift.decode(self.hift.pre(heard, 0, 0), spectrum[..., : -_PRE_RIGHT * _SPECTRA_PER_FRAME])
