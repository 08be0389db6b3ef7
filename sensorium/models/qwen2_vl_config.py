"""config.json of Qwen2-VL and Qwen2.5-VL. No torch: the processor reads it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sensorium.errors import CheckpointError
from sensorium.models.parts.configs import DecoderConfig, QwenVisionConfig


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
    def from_hf(
        cls, config: Mapping[str, Any], *, init_vision: bool = True, init_audio: bool = True, init_tts: bool = False
    ) -> Config:
        """init_audio and init_tts are asked of every family; this one neither hears nor speaks."""
        if init_tts:
            raise CheckpointError("init_tts: this model has no speech decoder; leave it out", param="init_tts")
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
