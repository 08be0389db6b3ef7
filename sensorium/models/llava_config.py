"""config.json of LLaVA-1.5. No torch: the processor reads it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sensorium.errors import CheckpointError
from sensorium.models.parts.configs import GELUS, ClipConfig, DecoderConfig

if TYPE_CHECKING:
    from sensorium.layers.mlp import Gelu

# Published configurations leave out what equals the defaults of their language model.
_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}


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
    def from_hf(
        cls, config: Mapping[str, Any], *, init_vision: bool = True, init_audio: bool = True, init_tts: bool = False
    ) -> Config:
        """init_audio and init_tts are asked of every family; this one neither hears nor speaks."""
        if init_tts:
            raise CheckpointError("init_tts: this model has no speech decoder; leave it out", param="init_tts")
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
