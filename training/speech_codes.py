"""The code book: mel to 25 codes a second by finite scalar quantisation, and back, for training only.

B tapes · n codes · M = 2 n mel frames
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.models.token2wav.config import MELS
from sensorium.models.token2wav.flow import SILENCE_CODE

LEVELS, DIGITS = 4, 5
NUM_CODES = SILENCE_CODE + 1
"""The table's size: codes are below LEVELS ** DIGITS, but for that of silence, which the engine says to be 4218."""
MEAN, SCALE = -6.0, 3.0
"""About what a log-mel is made of."""
_WIDTH = 192


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.first, self.second = nn.Conv1d(width, 2 * width, 3, padding=1), nn.Conv1d(2 * width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.gelu(self.first(self.norm(x))))


class CodeBook(nn.Module):
    """Looks about 100 ms around a code."""

    def __init__(self) -> None:
        super().__init__()
        w = _WIDTH
        self.encode = nn.Sequential(
            nn.Conv1d(MELS, w, 3, padding=1), nn.GELU(), nn.Conv1d(w, w, 4, 2, 1), _Residual(w), nn.Conv1d(w, DIGITS, 1)
        )
        self.decode = nn.Sequential(
            nn.Conv1d(DIGITS, w, 3, padding=1), _Residual(w), _Residual(w),
            nn.ConvTranspose1d(w, w, 4, 2, 1), nn.GELU(), _Residual(w), nn.Conv1d(w, MELS, 3, padding=1),
        )  # fmt: skip
        self.register_buffer("silence", torch.zeros((), dtype=torch.int64))
        self.register_buffer("powers", LEVELS ** torch.arange(DIGITS))

    def digits(self, mel: torch.Tensor) -> torch.Tensor:
        """mel [B, M, 80] to [B, 5, n] in 0 .. 3, before they are rounded."""
        z = self.encode(((mel - MEAN) / SCALE).transpose(1, 2))
        return (LEVELS - 0.02) * torch.sigmoid(z) - 0.49

    def loss(self, mel: torch.Tensor) -> torch.Tensor:
        raw = self.digits(mel)
        # What is rounded is heard as such, or with the noise of rounding, whose gradient is exact.
        noisy = torch.rand(len(mel), 1, 1, device=mel.device) < 0.3
        hard = raw + (raw.round() - raw).detach()
        soft = raw + torch.rand_like(raw) - 0.5
        out = self.decode(torch.where(noisy, soft, hard) / 1.5 - 1.0)
        return (out - ((mel - MEAN) / SCALE).transpose(1, 2)).abs().mean()

    @torch.no_grad()
    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """mel [B, M, 80] to codes int64 [B, n]."""
        index = (self.digits(mel).round().long().clamp(0, LEVELS - 1) * self.powers[:, None]).sum(1)
        return torch.where(index == self.silence, SILENCE_CODE, index)

    @torch.no_grad()
    def name_silence(self, silent: torch.Tensor) -> None:
        """silent [M, 80]: the mel of silence, whose code becomes 4218."""
        index = (self.digits(silent[None]).round().long() * self.powers[:, None]).sum(1)[0]
        self.silence.copy_(index[len(index) // 2])
