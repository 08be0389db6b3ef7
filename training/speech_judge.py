"""A discriminator on spectra at three resolutions, for the vocoder in training only.

B windows · S samples
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

_SIZES = (512, 1024, 2048)
_WIDTH = 24


class Judge(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(self._tower() for _ in _SIZES)
        for i, size in enumerate(_SIZES):
            self.register_buffer(f"window{i}", torch.hann_window(size), persistent=False)

    @staticmethod
    def _tower() -> nn.ModuleList:
        w = _WIDTH
        shapes = ((2, w, (3, 9), (1, 2)), (w, w, (3, 9), (1, 2)), (w, w, (3, 9), (1, 2)), (w, w, (3, 3), (1, 2)))
        convs = [nn.Conv2d(a, b, k, s, (k[0] // 2, k[1] // 2)) for a, b, k, s in shapes]
        return nn.ModuleList([*convs, nn.Conv2d(w, 1, 3, padding=1)])

    def forward(self, sound: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """[B, S] to the verdicts at each resolution, and what was seen on the way to them."""
        verdicts, seen = [], []
        for i, (size, tower) in enumerate(zip(_SIZES, self.towers, strict=True)):
            window = getattr(self, f"window{i}")
            spectrum = torch.stft(sound, size, size // 4, window=window, return_complex=True)
            # Roots bring quiet parts up.
            size_ = (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt()
            x = torch.stack((spectrum.real, spectrum.imag), 1) * size_[:, None] ** -0.6
            x = x.transpose(2, 3)
            *convs, last = tower
            for conv in convs:
                x = F.leaky_relu(conv(x), 0.1)
                seen.append(x)
            verdicts.append(last(x))
        return verdicts, seen

    def loss(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The judge's own."""
        (false, _), (true, _) = self(made), self(real)
        return sum(
            (a.square().mean() + (b - 1).square().mean() for a, b in zip(false, true, strict=True)), made.new_zeros(())
        )

    def complaint(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The vocoder's: to be taken for real, and to look alike on the way."""
        (false, ours) = self(made)
        with torch.no_grad():
            _, theirs = self(real)
        fooled = sum((a - 1).square().mean() for a in false)
        alike = sum((a - b).abs().mean() / b.abs().mean().clamp(min=1e-3) for a, b in zip(ours, theirs, strict=True))
        return fooled + 0.5 * alike
