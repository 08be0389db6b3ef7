"""All that the voice has said so far, on the device: sound, mel, pitch and codes on one tape; items and orders on it.

M = 2 n mel frames · n codes
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from sensorium.kernels.reference import PackedPlan
from sensorium.models.minicpmo import Model
from sensorium.models.token2wav.config import HOP, MELS, RATE
from sensorium.models.token2wav.features import prompt_mel
from sensorium.types import ModelInputs
from training.speech_blocks import CONTEXTS, ITEMS, ORDERS, TAPE
from training.speech_codes import CodeBook
from training.speech_items import CODE_SAMPLES, MAX_IDS

_LOWEST, _HIGHEST = 60, 300
"""Hz of the pitch that is looked for."""


class Tape:
    """Room for so many blocks. Counters lie on the device, so that recorded steps see what is new."""

    def __init__(self, blocks: int, width: int, device: torch.device) -> None:
        n, dev = blocks * TAPE, {"device": device}
        self.capacity, self.num_blocks, self.device = blocks, 0, device
        self.wave = torch.zeros(n * CODE_SAMPLES, dtype=torch.int16, **dev)
        self.mel = torch.zeros(2 * n, MELS, dtype=torch.float16, **dev)
        self.pitch = torch.zeros(2 * n, **dev)
        self.codes = torch.zeros(n, dtype=torch.int16, **dev)
        self.length = torch.zeros((), **dev)
        items = blocks * ITEMS * 3 // 4
        self.num_items = 0
        self.ids = torch.zeros(items, MAX_IDS, dtype=torch.int16, **dev)
        self.starts = torch.zeros(items, dtype=torch.int64, **dev)
        state = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.hidden = torch.zeros(items, CONTEXTS, MAX_IDS, width, dtype=state, **dev)
        self.fed, self.picked, self.item, self.counts, self._filled = {}, {}, {}, {}, dict.fromkeys(ORDERS, 0)
        for name, (count, places) in ORDERS.items():
            room = blocks * count
            self.fed[name] = torch.zeros(room, places, dtype=torch.int16, **dev)
            self.picked[name] = torch.zeros(room, places, dtype=torch.int16, **dev)
            self.item[name] = torch.zeros(room, dtype=torch.int64, **dev)
            self.counts[name] = torch.zeros((), **dev)

    # ---- filling ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def add(self, block: Mapping[str, torch.Tensor], codebook: CodeBook, backbone: Model) -> bool:
        """False if it is full."""
        items, *orders = block["counts"].tolist()
        if self.num_blocks == self.capacity or self.num_items + items > len(self.ids):
            return False
        at = self.num_blocks * TAPE
        samples = block["wave"]
        self.wave[at * CODE_SAMPLES :][: len(samples)] = samples
        sound = samples.float() / 32768
        mel = prompt_mel(sound)
        self.mel[2 * at :][: len(mel)] = mel.half()
        self.pitch[2 * at :][: len(mel)] = find_pitch(sound)
        self.codes[at:][:TAPE] = codebook(mel[None])[0].short()
        rows = slice(self.num_items, self.num_items + items)
        self.ids[rows] = block["ids"][:items]
        self.starts[rows] = block["starts"][:items].long() + at
        self.hidden[rows] = self._states(block, items, backbone)
        for name, count in zip(ORDERS, orders, strict=True):
            to = slice(self._filled[name], self._filled[name] + count)
            self.fed[name][to] = block[f"fed_{name}"][:count]
            self.picked[name][to] = block[f"picked_{name}"][:count]
            self.item[name][to] = block[f"item_{name}"][:count].long() + self.num_items
            self._filled[name] += count
            self.counts[name].fill_(self._filled[name])
        self.num_blocks += 1
        self.num_items += items
        self.length.fill_(self.num_blocks * TAPE)
        return True

    def _states(self, block: Mapping[str, torch.Tensor], items: int, backbone: Model) -> torch.Tensor:
        """Final states of the backbone after each token of each item, [items, contexts, ids, E]."""
        context, before = block["context"][:items].long(), block["context_at"][:items].long()
        flat = context.flatten(0, 1)
        count, width = flat.shape
        positions = torch.arange(width, device=flat.device).repeat(count)
        hidden = backbone(backbone.embed(flat.flatten()), ModelInputs(positions, PackedPlan(count)))
        at = before.flatten()[:, None] + torch.arange(MAX_IDS, device=flat.device)
        at = at.clamp(max=width - 1)[..., None].expand(-1, -1, hidden.shape[1])
        return torch.gather(hidden.view(count, width, -1), 1, at).view(items, CONTEXTS, MAX_IDS, -1)

    @torch.no_grad()
    def recode(self, codebook: CodeBook) -> None:
        """Codes of all that is there, by another code book."""
        for number in range(self.num_blocks):
            at = number * TAPE
            self.codes[at:][:TAPE] = codebook(self.mel[2 * at :][: 2 * TAPE].float()[None])[0].short()

    # ---- drawing ----------------------------------------------------------------------------------------------------

    def draw(self, batch: int, codes: int) -> torch.Tensor:
        """Codes at which windows of that many codes begin, [batch]."""
        return (torch.rand(batch, device=self.device) * (self.length - codes - 1)).long()

    def draw_orders(self, name: str, batch: int) -> torch.Tensor:
        return (torch.rand(batch, device=self.device) * self.counts[name]).long()

    def frames(self, starts: torch.Tensor, count: int) -> torch.Tensor:
        """float32 [B, count, 80]."""
        return self.mel[2 * starts[:, None] + torch.arange(count, device=self.device)].float()

    def samples(self, starts: torch.Tensor, count: int) -> torch.Tensor:
        """float32 [B, count]."""
        at = starts[:, None] * CODE_SAMPLES + torch.arange(count, device=self.device)
        return self.wave[at].float() / 32768


def find_pitch(sound: torch.Tensor) -> torch.Tensor:
    """[S] at 24 kHz -> Hz of each of S / 480 frames, by the first high peak of autocorrelation; 0 where it has none."""
    size = 1440
    frames = F.pad(sound, ((size - HOP) // 2, (size - HOP) // 2)).unfold(0, size, HOP)
    frames = frames - frames.mean(1, keepdim=True)
    power = torch.fft.rfft(frames, 4096).abs().square()
    same = torch.fft.irfft(power)[:, : RATE // _LOWEST + 2]
    # Fewer samples overlap at longer lags.
    same = same / (1 - torch.arange(same.shape[1], device=sound.device) / size)
    share = same / same[:, :1].clamp(min=1e-4)
    first = RATE // _HIGHEST
    middle = share[:, first:-1]
    peak = (middle >= share[:, first - 1 : -2]) & (middle >= share[:, first + 1 :])
    best = torch.where(peak, middle, -1.0).amax(1, keepdim=True)
    high = peak & (middle >= 0.9 * best)
    lag = high.float().argmax(1)
    rows = torch.arange(len(lag), device=sound.device)
    left, centre, right = (share[rows, first + lag + i] for i in (-1, 0, 1))
    bend = (left - 2 * centre + right).clamp(max=-1e-6)
    exact = first + lag + (0.5 * (left - right) / bend).clamp(-0.5, 0.5)
    voiced = (best[:, 0] > 0.6) & (same[:, 0] > size * 1e-5)
    return torch.where(voiced, RATE / exact, 0.0)
