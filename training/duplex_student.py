"""The packaged model learning full duplex: what it hears live, what it decides, and that it stays what it was.

B rows of W ids · C streams · T mel frames · N learned tokens · E width
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels.reference import PackedPlan
from sensorium.models.loader import build, load
from sensorium.models.minicpmo import Config, Model
from sensorium.types import ModelInputs
from training.batches import CLIP_ROWS
from training.duplex_batches import SOUND_ROWS
from training.duplex_items import MAX_UNITS, UNIT
from training.sound import HOP, WINDOW, power_mel

FRAMES = 100
"""Mel frames of a unit."""
_PADDED = 560
"""Zeros in front of a stream: its first unit is 1035 ms long."""
_DYNAMIC = 5 * 16_000
"""From so much sound on the loudest frame says which are inaudible."""


def live_mel(x: torch.Tensor) -> torch.Tensor:
    """float32 [C, 16000 U] -> mel [C, 80, 100 U + 2] as sensorium.models.minicpm_live_mel makes it unit by unit.

    The two frames at the end are what the last unit sees of the next.
    """
    units = x.shape[1] // UNIT
    half = WINDOW // 2
    stream = F.pad(x, (_PADDED, 0))
    padded = torch.cat((stream[:, 1 : half + 1].flip(1), stream), 1)
    mel = power_mel(padded.unfold(1, WINDOW, HOP)[:, : FRAMES * units + 3])
    loudest = mel.amax(2).cummax(1).values
    unit = torch.arange(FRAMES * units + 2, device=x.device).div(FRAMES, rounding_mode="floor").clamp(max=units - 1)
    held = (_PADDED + UNIT * (unit + 1)) >= _DYNAMIC
    floor = loudest[:, (FRAMES * (unit + 1) + 2)] - 8
    floor = torch.where(held, floor, -torch.inf)
    return ((torch.maximum(mel[:, : FRAMES * units + 2], floor[..., None]) + 4) / 4).transpose(1, 2)


class Learner(nn.Module):
    """The model with its pictures as they are, and the model that it was."""

    def __init__(self, folder: Path, symbols: int, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        config = Config.from_hf(json.loads((folder / "config.json").read_text("utf-8")))
        self.model = build(Model, config, device, dtype)
        before = load(Model, config, folder, device, dtype)
        self.model.load_state_dict(before.state_dict())
        before.requires_grad_(False)
        object.__setattr__(self, "before", before)  # no part of what is trained
        assert config.audio is not None
        torch.manual_seed(seed)
        self.symbols = nn.Linear(config.audio.width, symbols).to(device, dtype)
        for name, parameter in self.named_parameters():
            fixed = name.startswith(("model.vision.", "model.resampler.")) or name == "model.audio.position.weight"
            parameter.requires_grad_(not fixed)
        self.train()

    before: Model

    def compile_layers(self) -> None:
        for model in (self.model, self.before):
            for layer in (*model.decoder.layers, *model.audio.layers):
                layer.compile(dynamic=False)

    # ---- what is seen and heard -----------------------------------------------------------------------------------

    @torch.no_grad()
    def see(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes = batch["views"][:, 1:3].long()
        return self.model.resampler(self.model.vision(batch["patches"], sizes), sizes).flatten(0, 1)

    def _spelled(
        self, heard: torch.Tensor, frames: torch.Tensor, batch: dict[str, torch.Tensor], warm: bool
    ) -> torch.Tensor:
        """CTC of the words said. Its layer starts from nothing, and teaches nobody until it is warm."""
        logs = self.symbols(heard if warm else heard.detach()).float().log_softmax(-1).transpose(0, 1)
        lengths = batch["ctc_lengths"].long()
        loss = F.ctc_loss(logs, batch["ctc"].long(), frames, lengths, reduction="none", zero_infinity=True)
        spoken = (lengths > 0).float()
        return (loss / lengths.clamp(min=1) * spoken).sum() / spoken.sum().clamp(min=1)

    # ---- questions, as before -------------------------------------------------------------------------------------

    def chat(self, batch: dict[str, torch.Tensor], warm: bool) -> dict[str, torch.Tensor]:
        """What training.student loses on answers, and how far the states of answers have moved from what they were.

        The speech LM is told these states, and they are what keeps old skills.
        """
        pictures = self.see(batch)
        frames = (batch["frames"] - 1) // 2 + 1
        heard = encode(self.model, batch["mel"], batch["frames"])
        sounds = self.model.projector(heard)[:, :CLIP_ROWS].flatten(0, 1)
        blocks = [(batch[f"ids_{name}"], batch[f"rows_{name}"]) for name in ("short", "long")]
        hidden = decode(self.model, torch.cat((pictures, sounds)), blocks)[batch["learn_at"]]
        with torch.no_grad():
            past = self.before.projector(encode(self.before, batch["mel"], batch["frames"]))
            known = decode(self.before, torch.cat((pictures, past[:, :CLIP_ROWS].flatten(0, 1))), blocks)
        targets, answer = batch["learn_target"].long(), batch["learn_answer"].long()
        lengths = batch["answer_length"].float().clamp(min=1)
        weights = torch.where(answer >= 0, lengths[answer.clamp(min=0)] ** -0.5, 0.0)
        logits = self.model.logits(hidden).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        moved = 1 - F.cosine_similarity(hidden.float(), known[batch["learn_at"]].float(), dim=-1)
        real = (answer >= 0).float()
        wrong = (logits.argmax(-1) != targets).float() * real
        return {
            "answers": (losses * weights).sum() / weights.sum(),
            "moved": (moved * real).sum() / real.sum(),
            "heard": self._spelled(heard, frames, batch, warm),
            "chat_wrong": wrong.sum() / real.sum(),
        }

    # ---- full duplex ----------------------------------------------------------------------------------------------

    def duplex(self, batch: dict[str, torch.Tensor], warm: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Losses, and for every learned token whether its best guess is wrong."""
        frames = batch["wave_lengths"].long() // HOP + 2
        heard = encode(self.model, batch["mel"], frames)
        kept = SOUND_ROWS * MAX_UNITS
        sounds = self.model.projector(heard)[:, :kept].flatten(0, 1)
        media = torch.cat((self.see(batch), sounds))
        hidden = decode(self.model, media, [(batch["ids"], batch["rows"])])[batch["learn_at"]]
        targets, unit = batch["learn_target"].long(), batch["learn_unit"].long()
        logits = self.model.logits(hidden).float()
        losses = F.cross_entropy(logits, targets, reduction="none")
        at = unit.clamp(min=0)
        lengths, tasks = batch["unit_length"].float().clamp(min=1)[at], batch["unit_task"].long()[at]
        # Most units listen: together they weigh about as much as those that do not.
        weights = torch.where(unit >= 0, lengths**-0.5, 0.0) * torch.where(tasks == 0, 0.4, 1.0)
        parts = {
            "duplex": (losses * weights).sum() / weights.sum(),
            "live": self._spelled(heard, (frames - 1) // 2 + 1, batch, warm),
        }
        return parts, logits.argmax(-1) != targets


def encode(model: Model, mel: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """As the audio tower's forward, with attention that gradients flow through on every device."""
    audio = model.audio
    x = audio._convolve(mel, frames)
    length = x.shape[1]
    x = x + audio.position.weight[:length]
    index = torch.arange(length, device=x.device)
    inside, ends = index < ((frames - 1) // 2 + 1)[:, None], (index // audio.chunk + 1) * audio.chunk
    seen = (inside[:, None] & (index < ends[:, None]))[:, None]
    for layer in audio.layers:
        x = layer(x, seen)
    return audio.norm(x)


def decode(model: Model, media: torch.Tensor, blocks: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """media [rows, E]; blocks of ids and media rows, [B, W] each -> hidden states of all, one after another."""
    ids = torch.cat([block.flatten() for block, _ in blocks]).long()
    rows = torch.cat([block.flatten() for _, block in blocks]).long()
    count = len(ids)
    place = torch.full((len(media) + 1,), count, device=ids.device)
    place.scatter_(0, torch.where(rows >= 0, rows, len(media)), torch.arange(count, device=ids.device))
    x = F.pad(model.embed(ids), (0, 0, 0, 1)).index_put((place[:-1],), media)[:count]
    hidden, at = [], 0
    for block, _ in blocks:
        b, s = block.shape
        positions = torch.arange(s, device=ids.device).repeat(b)
        hidden.append(model(x[at : at + b * s], ModelInputs(positions, PackedPlan(b))))
        at += b * s
    return torch.cat(hidden)
