"""Qwen2-VL and Qwen2.5-VL: a vision tower for any resolution in front of a Qwen2 decoder with M-RoPE.

The two differ in the tower (norms, feed-forward, windows) and in how the time of video frames enters positions.
R rows of an item · E width · F frames
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sensorium.errors import UnsupportedError
from sensorium.models.parts import decoder, qwen_vision
from sensorium.models.parts.configs import QwenVisionConfig
from sensorium.models.parts.decoder import TextModel
from sensorium.models.parts.pixels import normalised
from sensorium.models.parts.qwen_vision import QwenVision
from sensorium.models.qwen2_vl_config import Config
from sensorium.types import MediaItem

# Our module -> (prefix in the checkpoint, rules below it).
RENAMES = {"decoder.": ("", decoder.RENAMES), "vision.": ("visual.", qwen_vision.RENAMES)}
# Later releases of the reference library put both below one more name.
ALIASES = ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model."))
# Patches encoded together; slabs do not see each other, so long videos are cut between them.
BATCH_PATCHES = 16384


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
