"""LLaVA-1.5: a CLIP tower and a two-layer projector in front of a Llama decoder.

B pictures · R rows of a picture · E width
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sensorium.errors import UnsupportedError
from sensorium.layers.mlp import Mlp
from sensorium.models.llava_config import Config
from sensorium.models.parts import clip, decoder
from sensorium.models.parts.clip import Clip
from sensorium.models.parts.decoder import TextModel
from sensorium.models.parts.pixels import normalised
from sensorium.types import MediaItem

# Our module -> (prefix in the checkpoint, rules below it).
RENAMES = {
    "decoder.": ("language_model.", decoder.RENAMES),
    "vision.": ("vision_tower.vision_model.", clip.RENAMES),
    "projector.": ("multi_modal_projector.", ((r"^fc(1|2)\.", r"linear_\1."),)),
}
# Later releases of the reference library name the same tensors in two other ways.
ALIASES = (
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
)
# Pictures encoded together.
BATCH = 16


class Model(TextModel):
    renames, aliases = RENAMES, ALIASES

    def __init__(self, config: Config) -> None:
        super().__init__(config.decoder)
        self.config = config
        self.modalities = ("image",) * (config.vision is not None)
        self.vision: Clip | None = None
        self.projector: Mlp | None = None
        if config.vision is not None:
            self.vision = Clip(config.vision, config.depths)
            width = config.vision.width * len(config.depths)
            self.projector = Mlp(width, self.hidden_size, config.projector_gelu, self.hidden_size)

    @property
    def ignored(self) -> tuple[str, ...]:
        """Checkpoint prefixes that may be present and are not read: what lies above the features, old tables."""
        tower, text = "vision_tower.vision_model.", "language_model."
        absent = [f"{text}model.layers.{i}.self_attn.rotary_emb." for i in range(self.num_layers)]
        if self.config.decoder.tied:
            absent.append(f"{text}lm_head.")
        if self.config.vision is None:
            return (*absent, tower, "multi_modal_projector.")
        above = range(max(self.config.depths), self.config.vision.num_layers)
        absent += [f"{tower}encoder.layers.{i}." for i in above]
        return (*absent, f"{tower}post_layernorm.", f"{tower}embeddings.position_ids")

    def encode(self, modality: str, items: Sequence[MediaItem]) -> list[torch.Tensor]:
        """One [R, E] tensor per picture: pixels uint8 [side, side, 3], mean and std float32 [3]."""
        if modality != "image" or self.vision is None or self.projector is None:
            raise UnsupportedError(f"this model takes no {modality} input, or was loaded without it")
        weight = self.decoder.embedding.weight
        rows: list[torch.Tensor] = []
        for start in range(0, len(items), BATCH):
            batch = [normalised(item.arrays["pixels"], item.arrays, weight) for item in items[start : start + BATCH]]
            seen = self.vision(torch.stack(batch).permute(0, 3, 1, 2))
            rows += self.projector(seen if self.config.keeps_class else seen[:, 1:])
        return rows
