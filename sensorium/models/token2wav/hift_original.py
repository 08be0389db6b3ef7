"""The original HiFT: whole utterances, and streams whose pieces are cross-faded (minicpmo-utils 1.0.5 and 1.0.6)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sensorium.models.token2wav.config import HOP, MELS
from sensorium.models.token2wav.hift import HARMONICS, Hift, cycles
from sensorium.models.token2wav.weights import Weights

_KEPT_FRAMES = 8
OVERLAP = _KEPT_FRAMES * HOP
"""Samples that a stream holds back to blend them with the next piece."""


@dataclass(slots=True)
class FadeState:
    """mel [80, <= 8], source and tail [<= 3840]: the ends of what was computed; frames: those of finished pieces."""

    mel: torch.Tensor
    source: torch.Tensor
    tail: torch.Tensor
    frames: int = 0


class OriginalVocoder:
    """M mel frames · B sounds."""

    def __init__(self, weights: Weights, noise: torch.Tensor) -> None:
        self.hift = Hift(weights, noise)
        self._fade = _fade(OVERLAP, weights.device)

    @torch.inference_mode()
    def whole(self, mel: torch.Tensor) -> torch.Tensor:
        """[B, M, 80] to [B, 480 M]."""
        mel = mel.transpose(1, 2)
        return self._decode(mel, self._source(mel, [0] * len(mel)))

    def reserve(self, streams: int) -> None:
        """What streams keep is made as they go."""

    def open(self) -> FadeState:
        device = self.hift.device
        return FadeState(
            torch.zeros(MELS, 0, device=device), torch.zeros(0, device=device), torch.zeros(0, device=device)
        )

    def shape(self, state: FadeState) -> tuple[int, ...]:
        """Streams with equal shapes can be vocoded together."""
        return state.mel.shape[1], len(state.tail)

    @torch.inference_mode()
    def stream(self, states: Sequence[FadeState], mel: torch.Tensor, last: bool) -> torch.Tensor:
        """The next frames [B, M, 80] of streams of one shape to the samples that are final, [B, ...]."""
        mel = torch.cat((torch.stack([state.mel for state in states]), mel.transpose(1, 2)), 2)
        starts = [(state.frames - state.mel.shape[1]) * HOP for state in states]
        source = self._source(mel, starts)
        kept = torch.stack([state.source for state in states])
        source = torch.cat((kept, source[:, kept.shape[1] :]), 1)
        sound = self._decode(mel, source)
        tail = torch.stack([state.tail for state in states])
        if n := tail.shape[1]:
            fade = self._fade if n == OVERLAP else _fade(n, self.hift.device)
            sound = torch.cat((sound[:, :n] * fade[:n] + tail * fade[n:], sound[:, n:]), 1)
        new = mel.shape[2] - states[0].mel.shape[1]
        ends = mel[:, :, -_KEPT_FRAMES:].clone(), source[:, -OVERLAP:].clone(), sound[:, -OVERLAP:].clone()
        for i, state in enumerate(states):
            state.frames += new
            state.mel, state.source, state.tail = (end[i] for end in ends)
        return sound if last else sound[:, :-OVERLAP]

    def _source(self, mel: torch.Tensor, starts: list[int]) -> torch.Tensor:
        f0 = self.hift.f0(mel)
        # In this order, and in float32, as the reference: late in a long utterance its phase is coarse.
        phase = cycles(f0).cumsum(1) * 2 * math.pi
        phase = F.interpolate(phase.transpose(1, 2) * HOP, scale_factor=float(HOP), mode="linear").transpose(1, 2)
        assert phase.shape[2] == HARMONICS
        return self.hift.source(f0, phase, torch.tensor(starts, device=self.hift.device))

    def _decode(self, mel: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return self.hift.decode(self.hift.pre(mel, 3, 3), self.hift.spectrum(source))


def _fade(length: int, device: torch.device) -> torch.Tensor:
    """[2 · length]: what the new sound rises by, then what the old one falls by."""
    return torch.hamming_window(2 * length, periodic=False, device=device)
