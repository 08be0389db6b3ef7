"""HiFT: mel to sound by a harmonic source, up-sampling convolutions and an inverse STFT. Both kinds share this file.

B sounds · M mel frames (50 per second) · S = 480 M samples at 24 kHz · C channels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from sensorium.errors import CheckpointError
from sensorium.kernels.snake import snake
from sensorium.models.token2wav.config import HOP, MELS, RATE
from sensorium.models.token2wav.weights import Weights

HARMONICS = 9
"""The fundamental and its eight overtones."""
SINE, NOISE = 0.1, 0.003
_VOICED_HZ = 10.0
_FFT, _STEP = 16, 4
BINS = _FFT // 2 + 1
EDGE = _FFT // 2
"""Samples on each side of the one that a frame of the transform is centred on."""
_RATES, _KERNELS = (8, 5, 3), (16, 11, 7)
_RESBLOCKS, _SOURCE_RESBLOCKS, DILATIONS = (3, 7, 11), (7, 7, 11), (1, 3, 5)
_SLOPE, _LIMIT, _LOUDEST = 0.1, 0.99, 100.0
_ORIGINAL_TAPS, _CAUSAL_TAPS = 7, 5
NOISE_S = 30
"""Seconds after which the noise of the source repeats."""
_NOISE_SEED = 0

Kind = Literal["original", "causal"]


def kind_of(weights: Weights) -> Kind:
    """Told by the first convolution: seven taps, or five."""
    taps = weights.shape("conv_pre.weight")[-1]
    if taps not in (_ORIGINAL_TAPS, _CAUSAL_TAPS):
        raise CheckpointError(
            f"{weights.file}: conv_pre has {taps} taps; HiFT has {_ORIGINAL_TAPS}, or {_CAUSAL_TAPS} if causal"
        )
    return "original" if taps == _ORIGINAL_TAPS else "causal"


class StreamingVocoder(Protocol):
    """What both vocoders do for streams. Their states differ."""

    def reserve(self, streams: int) -> None: ...

    def open(self) -> Any: ...

    def shape(self, state: Any) -> tuple[int, ...]: ...

    def stream(self, states: Sequence[Any], mel: torch.Tensor, last: bool) -> torch.Tensor: ...


Rates = tuple[torch.Tensor, torch.Tensor]


class Conv(NamedTuple):
    """A convolution whose padding its caller chooses."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, x: torch.Tensor, left: int, right: int, stride: int = 1, dilation: int = 1) -> torch.Tensor:
        if left == right:
            return F.conv1d(x, self.weight, self.bias, stride, left, dilation)
        return F.conv1d(F.pad(x, (left, right)), self.weight, self.bias, stride, 0, dilation)

    def to(self, dtype: torch.dtype) -> Conv:
        return Conv(self.weight.to(dtype), self.bias.to(dtype))


def take_conv(w: Weights, name: str, n_out: int, n_in: int, taps: int) -> Conv:
    return Conv(w.take(f"{name}.weight", n_out, n_in, taps), w.take(f"{name}.bias", n_out))


class ResBlock:
    """Three pairs of dilated and plain convolutions behind snake activations, each pair beside a shortcut."""

    def __init__(self, w: Weights, prefix: str, channels: int, taps: int, causal: bool) -> None:
        self._taps, self._causal = taps, causal
        self._pairs = [
            [
                (
                    _rates(w.take(f"{prefix}activations{half}.{i}.alpha", channels)),
                    take_conv(w, f"{prefix}convs{half}.{i}", channels, channels, taps),
                    dilation if half == 1 else 1,
                )
                for half in (1, 2)
            ]
            for i, dilation in enumerate(DILATIONS)
        ]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The next activation adds a bias, those of the shortcut come at the end: else each would cost a pass."""
        missing = None
        for first, second in self._pairs:
            y = self._half(x, missing, *first)
            x = x + self._half(y, first[1].bias, *second)
            missing = second[1].bias if missing is None else missing + second[1].bias
        return x if missing is None else x + missing[:, None]

    def narrow(self, dtype: torch.dtype) -> None:
        self._pairs = [[(rates, conv.to(dtype), step) for rates, conv, step in pair] for pair in self._pairs]

    def _half(self, x: torch.Tensor, bias: torch.Tensor | None, rates: Rates, conv: Conv, step: int) -> torch.Tensor:
        """The convolution of the activation of x + bias, without its own bias; step: its dilation."""
        reach = (self._taps - 1) * step
        y = snake(x, *rates, reach if self._causal else 0, bias)
        return F.conv1d(y, conv.weight, None, 1, 0 if self._causal else reach // 2, step)


def _rates(alpha: torch.Tensor) -> Rates:
    """Of snake, x + sin²(alpha x) / alpha: alpha and its inverse, [C, 1]."""
    return alpha[:, None], 1.0 / (alpha[:, None] + 1e-9)


class Hift:
    """What both vocoders are made of; their sizes are read off the tensors."""

    def __init__(self, w: Weights, noise: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
        """noise [N, 9] is added to the source, by absolute sample number modulo N. dtype: of what `decode` computes."""
        self.causal = causal = kind_of(w) == "causal"
        base, taps = w.shape("conv_pre.weight")[0], _CAUSAL_TAPS if causal else _ORIGINAL_TAPS
        self.pre = take_conv(w, "conv_pre", base, MELS, taps)
        self._ups, self._downs, self._source_blocks, self._blocks = [], [], [], []
        for i, (rate, kernel) in enumerate(zip(_RATES, _KERNELS, strict=True)):
            wide, narrow = base >> i, base >> i + 1
            shape = (narrow, wide, kernel) if causal else (wide, narrow, kernel)
            self._ups.append((w.take(f"ups.{i}.weight", *shape), w.take(f"ups.{i}.bias", narrow), rate))
            stride = math.prod(_RATES[i + 1 :])
            down_taps = 2 * stride if stride > 1 else 1
            self._downs.append((take_conv(w, f"source_downs.{i}", narrow, 2 * BINS, down_taps), stride))
            self._source_blocks.append(ResBlock(w, f"source_resblocks.{i}.", narrow, _SOURCE_RESBLOCKS[i], causal))
            self._blocks.append(
                [
                    ResBlock(w, f"resblocks.{len(_RESBLOCKS) * i + j}.", narrow, taps_, causal)
                    for j, taps_ in enumerate(_RESBLOCKS)
                ]
            )
        self._post = take_conv(w, "conv_post", 2 * BINS, base >> len(_RATES), 7)
        self._source = (w.take("m_source.l_linear.weight", 1, HARMONICS), w.take("m_source.l_linear.bias", 1))
        self.f0 = F0Predictor(w, causal)
        w.finish()
        self.device, self._dtype = w.device, dtype
        if dtype != torch.float32:
            self._narrow(dtype)
        self._noise = noise.to(w.device, torch.float32).contiguous()
        self._transform = short_transform(w.device)

    def _narrow(self, dtype: torch.dtype) -> None:
        self._ups = [(weight.to(dtype), bias.to(dtype), rate) for weight, bias, rate in self._ups]
        self._downs = [(conv.to(dtype), stride) for conv, stride in self._downs]
        self._post = self._post.to(dtype)
        for block in (*self._source_blocks, *(block for blocks in self._blocks for block in blocks)):
            block.narrow(dtype)

    def source(self, f0: torch.Tensor, phase: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """f0 [B, M] in Hz, phase [B, S, 9] in radians, starts int64 [B], absolute numbers of samples 0 -> [B, S]."""
        at = starts[:, None] + torch.arange(phase.shape[1], device=self.device)
        voiced = (f0 > _VOICED_HZ).to(phase.dtype).repeat_interleave(HOP, 1)[..., None]
        noise = self._noise[at % len(self._noise)] * (NOISE * voiced + SINE / 3 * (1 - voiced))
        return F.linear(SINE * torch.sin(phase) * voiced + noise, *self._source)[..., 0].tanh()

    def decode(self, x: torch.Tensor, spectrum: torch.Tensor, ends: torch.Tensor | None = None) -> torch.Tensor:
        """Rows of conv_pre [B, C, M] and the source's spectrum [B, 18, 120 M + 1] to sound [B, S].

        ends int64 [B]: mel frames after which a sound is over, where that is before M.
        """
        x, spectrum = x.to(self._dtype), spectrum.to(self._dtype)
        last = len(_RATES) - 1
        for i, (weight, bias, rate) in enumerate(self._ups):
            x = F.leaky_relu(x, _SLOPE)
            taps = weight.shape[-1]
            if self.causal:
                x = F.conv1d(F.pad(x.repeat_interleave(rate, -1), (taps - 1, 0)), weight, bias)
            else:
                x = F.conv_transpose1d(x, weight, bias, rate, (taps - rate) // 2)
            if i == last:
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + self._source_blocks[i](self._down(i, spectrum))
            first, *others = (block(x) for block in self._blocks[i])
            x = sum(others, first) / len(self._blocks[i])
        left, right = (6, 0) if self.causal else (3, 3)
        x = self._post(F.leaky_relu(x), left, right).float()
        return self.from_spectrum(x[:, :BINS].exp(), x[:, BINS:].sin(), ends).clamp(-_LIMIT, _LIMIT)

    def _down(self, i: int, spectrum: torch.Tensor) -> torch.Tensor:
        conv, stride = self._downs[i]
        if self.causal:
            return conv(spectrum, stride - 1, 0, stride)
        return conv(spectrum, stride // 2, stride // 2, stride)

    def spectrum(self, sound: torch.Tensor, ahead: int = 0) -> torch.Tensor:
        """[B, S] to [B, 18, S / 4 + 1]: real parts, then imaginary parts. ahead: see ShortTransform."""
        return self._transform.forward(sound, ahead)

    def from_spectrum(
        self, magnitude: torch.Tensor, phase: torch.Tensor, ends: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, 9, n] each to [B, 4 (n - 1)]; magnitudes are cut at 100. ends: see decode."""
        magnitude, heard = magnitude.clamp(max=_LOUDEST), None
        if ends is not None:
            heard = torch.arange(magnitude.shape[2], device=self.device) <= ends[:, None] * (HOP // _STEP)
        return self._transform.inverse(torch.cat((magnitude * phase.cos(), magnitude * phase.sin()), 1), heard)


class ShortTransform:
    """STFT of 16 samples every 4 and its inverse, as products with two small matrices.

    torch.istft reads a number back from the device, which no CUDA graph can hold.
    """

    def __init__(self, device: torch.device) -> None:
        window = torch.hann_window(_FFT, dtype=torch.float64)
        angles = torch.outer(torch.arange(BINS), torch.arange(_FFT)) * (2 * math.pi / _FFT)
        waves = torch.cat((angles.cos(), -angles.sin()))
        self._analysis = (waves * window).float()[:, None].to(device)
        # A real signal's inner bins stand for two.
        twice = torch.full((BINS, 1), 2.0 / _FFT, dtype=torch.float64)
        twice[0] = twice[-1] = 1.0 / _FFT
        self._synthesis = (waves * twice.repeat(2, 1) * window).float().to(device)
        self._power = (window**2).float().view(1, 1, _FFT).to(device)

    def forward(self, sound: torch.Tensor, ahead: int = 0) -> torch.Tensor:
        """[B, S] to [B, 18, S / 4 + 1], frames centred on their samples, the ends reflected.

        ahead: samples behind the end that are given with the sound, at most EDGE.
        """
        return F.conv1d(F.pad(sound[:, None], (EDGE, EDGE - ahead), mode="reflect"), self._analysis, stride=_STEP)

    def inverse(self, spectrum: torch.Tensor, heard: torch.Tensor | None = None) -> torch.Tensor:
        """[B, 18, n] to [B, 4 (n - 1)]. heard bool [B, n]: which frames there are; behind them is anything."""
        frames, power = spectrum.transpose(1, 2) @ self._synthesis, self._power
        if heard is not None:
            frames, power = frames.masked_fill(~heard[..., None], 0.0), power * heard[..., None]
        return _overlap(frames) / _overlap(power.expand(-1, frames.shape[1], -1))


@lru_cache(maxsize=8)
def short_transform(device: torch.device) -> ShortTransform:
    """One for all vocoders of a device: it holds constants."""
    return ShortTransform(device)


def _overlap(frames: torch.Tensor) -> torch.Tensor:
    """[B, n, 16] added up 4 samples apart, without what the first and the last frame have beyond their middle."""
    b, n, _ = frames.shape
    steps = frames.view(b, n, _FFT // _STEP, _STEP)
    out = frames.new_zeros(b, n + _FFT // _STEP - 1, _STEP)
    for i in range(_FFT // _STEP):
        out[:, i : i + n] += steps[:, :, i]
    return out.flatten(1)[:, EDGE:-EDGE]


class F0Predictor:
    """Five convolutions with ELU and one linear layer: mel to Hz. The causal one computes in float64."""

    def __init__(self, w: Weights, causal: bool) -> None:
        width = w.shape("f0_predictor.condnet.0.weight")[0]
        self._causal, self._dtype = causal, torch.float64 if causal else torch.float32
        convs = [
            take_conv(w, f"f0_predictor.condnet.{2 * i}", width, width if i else MELS, 4 if causal and i == 0 else 3)
            for i in range(5)
        ]
        if causal:
            # As products over the taps side by side: float64 has fast products on GPUs, and slow convolutions.
            convs = [Conv(conv.weight.permute(0, 2, 1).flatten(1), conv.bias) for conv in convs]
        self._convs = [Conv(*(part.to(self._dtype) for part in conv)) for conv in convs]
        self._out = (
            w.take("f0_predictor.classifier.weight", 1, width).to(self._dtype),
            w.take("f0_predictor.classifier.bias", 1).to(self._dtype),
        )

    def __call__(self, mel: torch.Tensor, right: int = 0) -> torch.Tensor:
        """[B, 80, M] to [B, M + right - 3] if causal, whose first convolution looks 3 frames ahead; else to [B, M].

        right: zeros to see behind the end.
        """
        x = mel.to(self._dtype)
        if not self._causal:
            for conv in self._convs:
                x = F.elu(conv(x, 1, 1))
            return F.linear(x.transpose(1, 2), *self._out)[..., 0].abs().float()
        x = x.transpose(1, 2)
        for i, conv in enumerate(self._convs):
            taps = conv.weight.shape[1] // x.shape[2]
            x = F.pad(x, (0, 0, taps - 1, 0) if i else (0, 0, 0, right))
            n = x.shape[1] - taps + 1
            x = F.elu(F.linear(torch.cat([x[:, tap : tap + n] for tap in range(taps)], -1), *conv))
        return F.linear(x, *self._out)[..., 0].abs().float()


def cycles(f0: torch.Tensor) -> torch.Tensor:
    """[B, M] in Hz to the cycles per sample of each harmonic, modulo 1, [B, M, 9], in f0's type."""
    return (f0[..., None] * torch.arange(1, HARMONICS + 1, device=f0.device, dtype=f0.dtype) / RATE) % 1


@lru_cache(maxsize=2)
def source_noise(kind: Kind) -> torch.Tensor:
    """[NOISE_S · 24000, 9]: normal for the original vocoder, uniform in [0, 1) for the causal one; always the same."""
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    make = torch.randn if kind == "original" else torch.rand
    return make(NOISE_S * RATE, HARMONICS, generator=generator)
