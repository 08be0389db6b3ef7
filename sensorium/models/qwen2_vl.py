"""Qwen2-VL and Qwen2.5-VL: a vision tower for any resolution in front of a Qwen2 decoder with M-RoPE.

The two differ in the tower (norms, feed-forward, windows) and in how the time of video frames enters positions.
R rows of an item · E width · F frames
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sensorium.errors import CheckpointError, UnsupportedError
from sensorium.models.parts import decoder, qwen_vision
from sensorium.models.parts.decoder import DecoderConfig, TextModel
from sensorium.models.parts.pixels import normalised
from sensorium.models.parts.qwen_vision import QwenVision, QwenVisionConfig
from sensorium.types import MediaItem

# Our module -> (prefix in the checkpoint, rules below it).
RENAMES = {"decoder.": ("", decoder.RENAMES), "vision.": ("visual.", qwen_vision.RENAMES)}
# Later releases of the reference library put both below one more name.
ALIASES = ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model."))
# Patches encoded together; slabs do not see each other, so long videos are cut between them.
BATCH_PATCHES = 16384


@dataclass(frozen=True, slots=True)
class Config:
    """What config.json says. `tower` describes the vision tower also where it is not loaded."""

    source: Mapping[str, Any]
    decoder: DecoderConfig
    tower: QwenVisionConfig
    has_vision: bool
    image_token: int
    video_token: int
    tokens_per_second: float | None
    """Position steps per second of video (Qwen2.5-VL); None: one per temporal slice."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, init_vision: bool = True, init_audio: bool = True) -> Config:
        """init_audio is asked of every family; this one has no sound."""
        if quantised := config.get("quantization_config"):
            method = quantised.get("quant_method", "unknown")
            raise CheckpointError(f"this checkpoint is quantised ({method}); load the bfloat16 release instead")
        gated = config.get("model_type") == "qwen2_5_vl"
        seen = config.get("vision_config") or {}
        # Fields of the language model stand at the top in published files, in text_config in later ones.
        text = {**config, **(config.get("text_config") or {})}
        text["tie_word_embeddings"] = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        if text.get("hidden_act", "silu") != "silu":
            raise CheckpointError(f"config.json: hidden_act {text['hidden_act']!r} is not supported")
        llm = DecoderConfig.from_hf(text, "qwen2")
        if sum(llm.rope.sections) * 2 != llm.head_dim or len(llm.rope.sections) != 3:
            raise CheckpointError(
                f"config.json: mrope_section {llm.rope.sections} does not fit head_dim {llm.head_dim}"
            )
        tower = QwenVisionConfig.from_hf(seen, gated=gated)
        if tower.n_out != llm.width:
            raise CheckpointError(f"config.json: the tower's rows have {tower.n_out} numbers, tokens {llm.width}")
        return cls(
            source=config,
            decoder=llm,
            tower=tower,
            has_vision=init_vision,
            image_token=int(config.get("image_token_id", 151655)),
            video_token=int(config.get("video_token_id", 151656)),
            tokens_per_second=float(seen.get("tokens_per_second", 4)) if gated else None,
        )


class Model(TextModel):
    renames, aliases = RENAMES, ALIASES

    def __init__(self, config: Config) -> None:
        super().__init__(config.decoder)
        self.config = config
        self.modalities = ("image", "video") * config.has_vision
        self.vision = QwenVision(config.tower) if config.has_vision else None

    @property
    def ignored(self) -> tuple[str, ...]:
        """Checkpoint prefixes that may be present and are not read."""
        return ("lm_head.",) * self.config.decoder.tied + ("visual.",) * (self.vision is None)

    def encode(self, modality: str, items: Sequence[MediaItem]) -> list[torch.Tensor]:
        """One [R, E] tensor per item: frames uint8 [F, H, W, 3], one for a picture, mean and std float32 [3]."""
        if modality not in self.modalities or self.vision is None:
            raise UnsupportedError(f"this model takes no {modality} input, or was loaded without it")
        weight, merge = self.decoder.embedding.weight, self.config.tower.merge
        rows: list[list[torch.Tensor]] = [[] for _ in items]
        for batch in self._batches(items):
            patches = [self.vision.patches(normalised(slab.pixels, items[slab.item].arrays, weight)) for slab in batch]
            out = self.vision(torch.cat(patches), [slab.size for slab in batch])
            for slab, part in zip(batch, out.split([len(p) // merge**2 for p in patches]), strict=True):
                rows[slab.item].append(part)
        return [torch.cat(parts) for parts in rows]

    def _batches(self, items: Sequence[MediaItem]) -> Iterator[list[_Slab]]:
        """Slabs in order, cut where BATCH_PATCHES are reached; a larger one goes alone."""
        batch: list[_Slab] = []
        filled = 0
        for slab in _slabs(items, self.config.tower):
            count = slab.size[0] * slab.size[1]
            if batch and filled + count > BATCH_PATCHES:
                yield batch
                batch, filled = [], 0
            batch.append(slab)
            filled += count
        if batch:
            yield batch


@dataclass(frozen=True, slots=True)
class _Slab:
    """A picture, or the frames of one temporal slice: pixels uint8 [1 or T, H, W, 3], size in patches."""

    item: int
    pixels: np.ndarray
    size: tuple[int, int]


def _slabs(items: Sequence[MediaItem], tower: QwenVisionConfig) -> Iterator[_Slab]:
    for number, item in enumerate(items):
        frames = item.arrays["frames"]
        size = (frames.shape[1] // tower.patch_size, frames.shape[2] // tower.patch_size)
        for start in range(0, len(frames), tower.temporal):
            yield _Slab(number, frames[start : start + tower.temporal], size)
