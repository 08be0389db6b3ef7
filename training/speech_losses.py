"""What flow, vocoder and speech LM lose on windows of the tape.

B windows · T frames · n codes
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels.reference import PackedPlan
from sensorium.models.minicpm_speech import SpeechLM
from sensorium.models.token2wav.config import HOP, LOOKAHEAD, RATE
from sensorium.models.token2wav.features import _slaney
from sensorium.models.token2wav.flow import SILENCE_CODE
from sensorium.models.token2wav.hift import HARMONICS, NOISE, SINE, Hift, cycles
from sensorium.types import ModelInputs
from training.speech_items import CODE, END_CODE, IGNORE, QUIET
from training.speech_judge import Judge
from training.speech_live import (
    FLOW,
    LiveEstimator,
    LivePast,
    LiveWeights,
    Seen,
    encode,
    speaker_row,
)
from training.speech_tape import Tape

Numbers = tuple[torch.Tensor, list[torch.Tensor]]
_MARGIN = 4
"""Frames at the ends of a window of sound that hear zeros where the tape goes on."""


def flow_loss(
    params: Mapping[str, nn.Parameter], tape: Tape, speaker: torch.Tensor, batch: int, codes: int = 150
) -> Numbers:
    """A window begins with the voice, whose mel is known or is not; then pieces of a second, of 8 codes, or one."""
    device = speaker.device
    starts = tape.draw(batch, codes + LOOKAHEAD)
    at = starts[:, None] + torch.arange(codes + LOOKAHEAD, device=device)
    said, mel = tape.codes[at].long(), tape.frames(starts, 2 * codes)
    place = torch.arange(codes, device=device)
    voice = (torch.rand(batch, 1, device=device) * 1.2 - 0.2).clamp(min=0) * 80
    kind = torch.rand(batch, 1, device=device)
    size = torch.where(kind < 0.25, 8.0, torch.where(kind < 0.75, 25.0, 1000.0))
    pieces = torch.where(place < voice, 0.0, 1 + ((place - voice) / size).floor())
    half = batch // 2
    mu = torch.cat(
        (
            encode(params, said[:half], pieces[:half], last=False),
            encode(params, said[half:, :codes], pieces[half:], last=True),
        )
    )
    time = 1 - torch.cos(math.pi / 2 * torch.rand(batch, device=device))
    noise = torch.randn_like(mel)
    noisy = torch.lerp(noise, mel, time[:, None, None])
    frames = pieces.repeat_interleave(2, 1)
    known_part = (frames == 0) & (torch.rand(batch, 1, device=device) < 0.8)
    known = mel * known_part[..., None]
    estimator = LiveEstimator(params, FLOW, time)
    row = speaker_row(params, speaker).expand(batch, -1)
    velocity, _ = estimator.velocity(0, noisy, estimator.condition(mu, row, known), LivePast(Seen(frames)))  # type: ignore[arg-type]
    missed = (velocity - (mel - noise)[:, :, None]).square().mean((0, 1, 3))
    mean = (mu - mel).abs().mean()
    return missed[0] + 0.3 * missed[1] + mean, [missed[0], missed[1], mean]


def vocoder_loss(
    params: Mapping[str, nn.Parameter], tape: Tape, batch: int, judge: Judge | None, weight: torch.Tensor
) -> Numbers:
    """weight: of what the judge says, on the device."""
    made, real, off = _vocoded(params, tape, batch)
    shape, level = _spectral(made, real)
    # What the pitch is off by is far steeper than the rest, and would decide alone how much of a step is cut. It meets
    # parameters of its own, whose steps Adam makes the same size anyway.
    loss, numbers = shape + level + 0.01 * off, [shape, level, off]
    if judge is not None:
        numbers.append(judge.complaint(made, real))
        loss = loss + weight * numbers[-1]
    return loss, numbers


def judge_loss(params: Mapping[str, nn.Parameter], tape: Tape, batch: int, judge: Judge) -> Numbers:
    with torch.no_grad():
        made, real, _ = _vocoded(params, tape, batch)
    return judge.loss(made, real), []


def _vocoded(
    params: Mapping[str, nn.Parameter], tape: Tape, batch: int, frames: int = 48
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Windows of sound [B, S] made of their mel, the real ones, and how far the pitch is off."""
    starts = tape.draw(batch, frames // 2)
    mel = tape.frames(starts, frames)
    wave = tape.samples(starts, frames * HOP)
    hift = Hift(LiveWeights(params), torch.zeros(1, HARMONICS, device=mel.device))
    heard = hift.f0(mel.transpose(1, 2))
    pitch = tape.pitch[2 * starts[:, None] + torch.arange(frames, device=mel.device)]
    inside = slice(_MARGIN, frames - _MARGIN)
    off = F.smooth_l1_loss(heard[:, inside], pitch[:, inside], beta=5.0) / 10
    made = hift.decode(hift.pre(mel.transpose(1, 2), 3, 3), hift.spectrum(_source(hift, heard.detach())))
    edge = _MARGIN * HOP
    return made[:, edge:-edge], wave[:, edge:-edge], off


def _source(hift: Hift, f0: torch.Tensor) -> torch.Tensor:
    """As OriginalVocoder's, with other noise at each call."""
    phase = cycles(f0).cumsum(1) * 2 * math.pi
    phase = F.interpolate(phase.transpose(1, 2) * HOP, scale_factor=float(HOP), mode="linear").transpose(1, 2)
    voiced = (f0 > 10).float().repeat_interleave(HOP, 1)[..., None]
    noise = torch.randn_like(phase) * (NOISE * voiced + SINE / 3 * (1 - voiced))
    return F.linear(SINE * torch.sin(phase) * voiced + noise, *hift._source)[..., 0].tanh()


def _spectral(ours: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How far logarithms of bands and of bins are apart, at several resolutions."""
    bands = bins = torch.zeros((), device=ours.device)
    for fft in (256, 512, 1024, 2048):
        a, b = (_magnitude(x, fft) for x in (ours, real))
        bins = bins + ((a + 1e-3).log() - (b + 1e-3).log()).abs().mean() + (a - b).norm() / b.norm().clamp(min=1e-3)
        filters = _filters(fft, 40 if fft < 512 else 80, ours.device)
        bands = bands + ((filters @ a + 1e-4).log() - (filters @ b + 1e-4).log()).abs().mean()
    return bands / 4, bins / 4


def _magnitude(x: torch.Tensor, fft: int) -> torch.Tensor:
    spectrum = torch.stft(x, fft, fft // 4, window=_window(fft, x.device), return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square() + 1e-8).sqrt()


@cache
def _window(fft: int, device: torch.device) -> torch.Tensor:
    return torch.hann_window(fft, device=device)


@cache
def _filters(fft: int, bands: int, device: torch.device) -> torch.Tensor:
    return _slaney(RATE, fft, bands, RATE / 2).to(device)


def speech_loss(speech: SpeechLM, tape: Tape, batches: Mapping[str, int]) -> Numbers:
    """Cross entropy of the picks of orders, short and long ones."""
    total = right = right_ends = ends = count = torch.zeros((), device=tape.codes.device)
    for name, batch in batches.items():
        x, targets = _order_rows(speech, tape, name, batch)
        width = targets.shape[1]
        positions = torch.arange(width, device=x.device).repeat(batch)
        hidden = speech(x.flatten(0, 1), ModelInputs(positions, PackedPlan(batch)))
        logits, goal = speech.logits(hidden), targets.flatten()
        total = total + F.cross_entropy(logits, goal, ignore_index=-100, reduction="sum")
        hit = logits.argmax(-1) == goal
        right, count = right + hit.sum(), count + (goal >= 0).sum()
        end = goal == speech.eos_code
        right_ends, ends = right_ends + (hit & end).sum(), ends + end.sum()
    loss = total / count
    return loss, [right / count, right_ends / ends.clamp(min=1)]


def _order_rows(speech: SpeechLM, tape: Tape, name: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [B, W, E] and targets [B, W], -100 where nothing is to be picked."""
    order = tape.draw_orders(name, batch)
    fed, picked, item = tape.fed[name][order].long(), tape.picked[name][order].long(), tape.item[name][order]
    ids = tape.ids[item].long()
    device = ids.device
    # The states after another context, or of another text: what is said must hang on the ids.
    context = torch.randint(tape.hidden.shape[1], (batch,), device=device)
    other = torch.rand(batch, device=device) < 0.2
    weight, config = speech.text.weight, speech.config
    hidden = tape.hidden[torch.where(other, item.roll(1), item), context].to(weight.dtype)
    texts = speech.condition(ids.flatten(), hidden.flatten(0, 1)).view(*ids.shape, -1)
    marks = torch.stack((weight[config.text_eos_id], weight[config.audio_bos_id]))
    first = tape.starts[item][:, None]

    def code(values: torch.Tensor) -> torch.Tensor:
        at = first + (values - CODE).clamp(min=0)
        return torch.where(values >= CODE, tape.codes[at.clamp(max=len(tape.codes) - 1)].long(), SILENCE_CODE)

    said = code(fed)
    wrong = torch.rand(said.shape, device=device) < 0.03
    said = torch.where(wrong, torch.randint(1024, said.shape, device=device), said)
    places = texts.shape[1]
    pool = torch.cat((texts, marks.expand(batch, -1, -1)), 1)
    text_at = torch.where(fed <= places, (fed - 1).clamp(min=0), places + (fed - 200).clamp(0, 1))
    text_rows = torch.gather(pool, 1, text_at[..., None].expand(-1, -1, pool.shape[2]))
    x = torch.where((fed >= QUIET)[..., None], speech.embed(said.flatten()).view_as(text_rows), text_rows)
    targets = torch.where(picked == END_CODE, speech.eos_code, code(picked))
    return x, torch.where(picked == IGNORE, -100, targets)
