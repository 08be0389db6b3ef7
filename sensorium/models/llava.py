"""LLaVA-1.5: a CLIP tower and a two-layer projector in front of a Llama decoder.

B pictures · R rows of a picture · E width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sensorium.errors import CheckpointError, UnsupportedError
from sensorium.layers.mlp import Gelu, Mlp
from sensorium.models.parts import clip, decoder
from sensorium.models.parts.clip import GELUS, Clip, ClipConfig
from sensorium.models.parts.decoder import DecoderConfig, TextModel
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
# Published configurations leave out what equals the defaults of their language model.
_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
# Pictures encoded together.
BATCH = 16


@dataclass(frozen=True, slots=True)
class Config:
    """What config.json says. vision is None where the tower is not loaded."""

    source: Mapping[str, Any]
    decoder: DecoderConfig
    vision: ClipConfig | None
    image_token: int
    image_size: int
    depths: tuple[int, ...]
    """Layers of the tower whose outputs make a row, as numbers of layers below."""
    keeps_class: bool
    projector_gelu: Gelu
    rows: int
    """Embeddings per picture."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, init_vision: bool = True, init_audio: bool = True) -> Config:
        """init_audio is asked of every family; this one has no sound."""
        text, seen = dict(config.get("text_config") or {}), dict(config.get("vision_config") or {})
        _refuse(config, text, seen)
        text.setdefault("tie_word_embeddings", config.get("tie_word_embeddings", False))
        vision = ClipConfig.from_hf(seen)
        layers = config.get("vision_feature_layer", -2)
        keeps_class = config.get("vision_feature_select_strategy", "default") == "full"
        return cls(
            source=config,
            decoder=DecoderConfig.from_hf(_LLAMA | text, "llama"),
            vision=vision if init_vision else None,
            image_token=int(config.get("image_token_index", config.get("image_token_id", 32000))),
            image_size=vision.image_size,
            depths=tuple(vision.depth(layer) for layer in (layers if isinstance(layers, list) else [layers])),
            keeps_class=keeps_class,
            projector_gelu=GELUS[config.get("projector_hidden_act", "gelu")],
            rows=vision.num_patches + keeps_class,
        )


def _refuse(config: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    """Raises CheckpointError where config.json asks for what is not built, naming the field."""
    fields = (
        ("quantization_config", config.get("quantization_config"), (None,)),
        ("text_config.model_type", text.get("model_type", "llama"), ("llama",)),
        ("text_config.hidden_act", text.get("hidden_act", "silu"), ("silu",)),
        ("vision_config.model_type", vision.get("model_type", "clip_vision_model"), ("clip_vision_model",)),
        ("vision_feature_select_strategy", config.get("vision_feature_select_strategy", "default"), _STRATEGIES),
        ("projector_hidden_act", config.get("projector_hidden_act", "gelu"), tuple(GELUS)),
        ("multimodal_projector_bias", config.get("multimodal_projector_bias", True), (True,)),
    )
    for name, value, known in fields:
        if value not in known:
            raise CheckpointError(f"config.json: {name} {value!r} is not supported; supported: {known}")


_STRATEGIES = ("default", "full")


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
