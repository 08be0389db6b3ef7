"""The packaged model in training: the engine's modules, a start from which gradients flow, and heads for training only.

V views · L patches · C clips · T mel frames · N packed ids · A answers · E width
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels.reference import PackedPlan
from sensorium.models.loader import build
from sensorium.models.minicpmo import Config, Model
from sensorium.types import ModelInputs
from training.batches import CLIP_ROWS
from training.lexicon import COLOURS, GLYPHS, SHAPES
from training.views import PATCH

NUM_CLASSES = 1 + len(SHAPES) + len(GLYPHS)
NUM_COLOURS = 1 + len(COLOURS)
CODE = 64
"""Channels of the vision tower that carry the position code at the start."""


@dataclass(slots=True)
class Losses:
    total: torch.Tensor
    parts: dict[str, torch.Tensor]
    wrong: torch.Tensor
    """bool [learned]: tokens whose best guess is not the target."""


class Heads(nn.Module):
    """Dense supervision for the towers, dropped after training."""

    def __init__(self, vision_width: int, audio_width: int, symbols: int) -> None:
        super().__init__()
        self.kinds = nn.Linear(vision_width, 2 * NUM_CLASSES)
        self.colours = nn.Linear(vision_width, 2 * NUM_COLOURS)
        self.boxes = nn.Linear(vision_width, 4)
        self.symbols = nn.Linear(audio_width, symbols)
        self.voice = nn.Linear(audio_width, 2)


class Student(nn.Module):
    def __init__(self, folder: Path, symbols: int, device: torch.device, dtype: torch.dtype, seed: int) -> None:
        super().__init__()
        config = Config.from_hf(json.loads((folder / "config.json").read_text("utf-8")))
        self.model = build(Model, config, device, dtype)
        assert config.vision is not None
        assert config.audio is not None
        torch.manual_seed(seed)
        self.heads = Heads(config.vision.width, config.audio.width, symbols).to(device, dtype)
        start(self.model)
        for name, parameter in self.named_parameters():
            # Whisper's sinusoids stay as they are, so that clips longer than any in training keep meaningful positions.
            parameter.requires_grad_(name != "model.audio.position.weight")
        self.train()

    def compile_layers(self) -> None:
        model = self.model
        for layer in (*model.decoder.layers, *model.vision.layers, *model.audio.layers):
            layer.compile(dynamic=False)

    def forward(self, batch: dict[str, torch.Tensor]) -> Losses:
        """batch: the arrays of training.batches, with `patches`, `labels`, `mel` and `frames` made of them."""
        parts: dict[str, torch.Tensor] = {}
        sizes = batch["views"][:, 1:3].long()
        seen = self.model.vision(batch["patches"], sizes)
        pictures = self.model.resampler(seen, sizes)
        parts |= self._vision_losses(seen, batch)
        heard = self.model.audio(batch["mel"], batch["frames"])
        sounds = self.model.projector(heard)
        parts |= self._audio_losses(heard, batch)
        hidden = self._decode(torch.cat((pictures.flatten(0, 1), sounds[:, :CLIP_ROWS].flatten(0, 1))), batch)
        logits = self.model.logits(hidden[batch["learn_at"]]).float()
        targets, answer = batch["learn_target"].long(), batch["learn_answer"].long()
        # Long answers would drown short ones token by token; short ones would drown long ones answer by answer.
        lengths = batch["answer_length"].float().clamp(min=1)
        weights = torch.where(answer >= 0, lengths[answer.clamp(min=0)] ** -0.5, 0.0)
        losses = F.cross_entropy(logits, targets, reduction="none")
        parts["answers"] = (losses * weights).sum() / weights.sum()
        factors = {"answers": 1.0, "kinds": 0.6, "colours": 0.3, "boxes": 0.5, "symbols": 0.4, "voice": 0.05}
        total = sum(factors[name] * loss for name, loss in parts.items())
        return Losses(total, parts, logits.argmax(-1) != targets)

    def _decode(self, media: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """media [rows, E] -> hidden [N short + N long, E]."""
        ids = torch.cat((batch["ids_short"].flatten(), batch["ids_long"].flatten())).long()
        rows = torch.cat((batch["rows_short"].flatten(), batch["rows_long"].flatten())).long()
        count = len(ids)
        # Where each media row goes; rows nobody shows go to a spare place at the end. Scattering rows keeps the
        # gradient a plain gather.
        place = torch.full((len(media) + 1,), count, device=ids.device)
        place.scatter_(0, torch.where(rows >= 0, rows, len(media)), torch.arange(count, device=ids.device))
        x = F.pad(self.model.embed(ids), (0, 0, 0, 1)).index_put((place[:-1],), media)[:count]
        hidden, at = [], 0
        for name in ("short", "long"):
            b, s = batch[f"ids_{name}"].shape
            positions = torch.arange(s, device=ids.device).repeat(b)
            hidden.append(self.model(x[at : at + b * s], ModelInputs(positions, PackedPlan(b))))
            at += b * s
        return torch.cat(hidden)

    def _vision_losses(self, seen: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What covers the left and the right half of each patch, in which colour, and where its box ends."""
        labels, views = batch["labels"].long(), batch["views"]
        length = labels.shape[1]
        patch = torch.arange(length, device=labels.device)
        num_cols = views[:, 2, None].long()
        valid = (patch < views[:, 1, None].long() * num_cols).float()
        rows = batch["scene_rows"][views[:, 0].long()]
        row = torch.gather(rows, 1, labels.clamp(min=0).flatten(1)[..., None].expand(-1, -1, rows.shape[2]))
        row = row.view(*labels.shape, -1) * (labels >= 0)[..., None]
        norm = valid.sum() * 2
        losses = {}
        for name, channel, classes in (("kinds", 16, NUM_CLASSES), ("colours", 17, NUM_COLOURS)):
            logits = getattr(self.heads, name)(seen).float().view(-1, classes)
            loss = F.cross_entropy(logits, row[..., channel].long().flatten(), reduction="none")
            losses[name] = (loss.view(*labels.shape) * valid[..., None]).sum() / norm
        step = torch.stack((views[:, 5], views[:, 6], views[:, 5], views[:, 6]), -1)[:, None] * PATCH
        offset = torch.stack((views[:, 3], views[:, 4], views[:, 3], views[:, 4]), -1)[:, None]
        centre = torch.stack((patch % num_cols, patch // num_cols) * 2, -1) + 0.5
        target = (row[:, :, 0, 9:13] - offset) / step - centre
        known = valid * (labels[..., 0] >= 0)
        loss = F.smooth_l1_loss(
            self.heads.boxes(seen).float() * 4, target.clamp(-16, 16), reduction="none", beta=0.2
        ).mean(-1)
        losses["boxes"] = (loss * known).sum() / known.sum().clamp(min=1) * 0.5
        return losses

    def _audio_losses(self, heard: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logs = self.heads.symbols(heard).float().log_softmax(-1).transpose(0, 1)
        frames = (batch["frames"] - 1) // 2 + 1
        lengths = batch["ctc_lengths"].long()
        loss = F.ctc_loss(logs, batch["ctc"].long(), frames, lengths, reduction="none", zero_infinity=True)
        spoken = (lengths > 0).float()
        inside = (torch.arange(heard.shape[1], device=heard.device) < frames[:, None]).to(heard.dtype)[..., None]
        pooled = (heard * inside).sum(1) / inside.sum(1)
        voice = F.cross_entropy(self.heads.voice(pooled).float(), batch["female"].long(), reduction="none")
        count = spoken.sum().clamp(min=1)
        return {
            "symbols": (loss / lengths.clamp(min=1) * spoken).sum() / count,
            "voice": (voice * spoken).sum() / count,
        }


# ---- the start ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def start(model: Model) -> None:
    """Random weights with two exceptions: the resampler looks at an 8 x 8 grid of cells, and sound has sinusoids."""
    for name, parameter in model.named_parameters():
        if "norm" in name or ".ln_" in name:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        elif name == "decoder.embedding.weight":
            parameter.normal_(0, 0.5)
        else:
            last = name.endswith(("attention.out.weight", "mlp.down.weight", "mlp.fc2.weight"))
            fan_in = parameter[0].numel()
            parameter.normal_(0, fan_in**-0.5 * (0.25 if last else 1.0))
    length, width = model.audio.position.weight.shape
    model.audio.position.weight.copy_(0.5 * _sinusoids(length, width))
    _grid_start(model)


def _sinusoids(length: int, width: int) -> torch.Tensor:
    steps = math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2)
    angles = torch.arange(length)[:, None] * torch.exp(-steps)
    return torch.cat((angles.sin(), angles.cos()), 1)


def _cell_code(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Fractions of width and height -> [..., CODE], whose products are largest between neighbours."""
    turns = torch.arange(1, CODE // 4 + 1) * math.pi
    parts = [wave(c[..., None] * turns) for c in (x, y) for wave in (torch.sin, torch.cos)]
    return torch.cat(parts, -1)


def _grid_start(model: Model) -> None:
    """Each of the 64 queries attends to the patches of its cell and passes their mean on.

    The code of fractional positions sits in channels where the resampler's own position code is nearly constant (its
    slowest waves), so it picks cells whatever the shape of the slice.
    """
    tower, sampler = model.vision, model.resampler
    width = sampler.query.shape[1]
    side = tower.side
    at = (torch.arange(side) + 0.5) / side
    code = _cell_code(at[None].expand(side, -1), at[:, None].expand(-1, side)).reshape(side * side, CODE)
    tower.position.weight.zero_()
    tower.position.weight[:, :CODE] = code.to(tower.position.weight)
    tower.patch.weight[:CODE] = 0
    quarter = width // 4
    slots = torch.cat((torch.arange(quarter // 2, quarter), torch.arange(quarter + quarter // 2, 2 * quarter)))
    content = torch.arange(width // 2, width)
    kv = torch.randn_like(sampler.kv_proj.weight) * 0.02
    kv[slots, torch.arange(CODE)] = 1.0
    kv[content, CODE + torch.arange(len(content))] = 1.0
    sampler.kv_proj.weight.copy_(kv)
    cells = (torch.arange(8) + 0.5) / 8
    query = torch.zeros(64, width)
    query[:, slots] = _cell_code(cells[None].expand(8, -1), cells[:, None].expand(-1, 8)).reshape(64, CODE)
    sampler.query.copy_(query)
    eye = torch.eye(width)
    look = torch.randn(width, width) * 0.02
    for head in range(sampler.num_heads):
        look[head * 128 + torch.arange(CODE), slots] = 1.0
    sampler.attn.in_proj_weight.copy_(torch.cat((look, look, eye)))
    sampler.attn.out_proj.weight.copy_(eye)
    sampler.proj.copy_(0.5 * eye)
