"""config.json of MiniCPM-V and MiniCPM-o. No torch: the processor reads it too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sensorium.errors import CheckpointError
from sensorium.models.minicpm_speech_config import SpeechConfig
from sensorium.models.parts.configs import DecoderConfig, DecoderKind, SiglipConfig, WhisperConfig

_LANGUAGE_MODELS: dict[tuple[str, tuple[int, ...]], DecoderKind] = {
    ("minicpmv", (2, 5)): "llama",
    ("minicpmv", (2, 6)): "qwen2",
    ("minicpmv", (4, 0)): "llama",
    ("minicpmv", (4, 5)): "qwen3",
    ("minicpmo", (2, 6)): "qwen2",
    ("minicpmo", (4, 5)): "qwen3",
}


@dataclass(frozen=True, slots=True)
class Config:
    """What config.json says. vision, audio and speech are None where the model has no such part or it is not loaded."""

    source: Mapping[str, Any]
    model_type: str
    version: tuple[int, ...]
    decoder: DecoderConfig
    vision: SiglipConfig | None
    audio: WhisperConfig | None
    speech: SpeechConfig | None = None
    query_num: int = 64
    vision_batch_size: int = 16
    max_slice_nums: int = 9
    scale_resolution: int = 448
    use_image_id: bool = True
    audio_pool_step: int = 5
    audio_chunk_s: float = 1.0
    drop_vision_last_layer: bool = True

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], *, init_vision: bool = True, init_audio: bool = True, init_tts: bool = False
    ) -> Config:
        model_type = str(config.get("model_type"))
        version = _version(config, model_type)
        kind = _LANGUAGE_MODELS.get((model_type, version))
        if kind is None:
            known = ", ".join(f"{name} {'.'.join(map(str, v))}" for name, v in _LANGUAGE_MODELS)
            raise CheckpointError(
                f"{model_type} version {'.'.join(map(str, version))} is not supported; supported: {known}"
            )
        if "quantization_config" in config:
            method = config["quantization_config"].get("quant_method", "unknown")
            raise CheckpointError(f"this checkpoint is quantised ({method}); load the bfloat16 release instead")
        slices = config.get("slice_config") or {"max_slice_nums": 1}
        has_audio = init_audio and model_type == "minicpmo" and config.get("init_audio", True)
        return cls(
            source=config,
            model_type=model_type,
            version=version,
            decoder=DecoderConfig.from_hf(config, kind),
            vision=SiglipConfig.from_hf(config.get("vision_config") or {})
            if init_vision and config.get("init_vision", True)
            else None,
            audio=WhisperConfig.from_hf(config.get("audio_config") or {}) if has_audio else None,
            speech=_speech(config) if init_tts else None,
            query_num=int(config.get("query_num", 96 if version == (2, 5) else 64)),
            vision_batch_size=int(config.get("vision_batch_size", 16)),
            max_slice_nums=int(slices.get("max_slice_nums", 9)),
            scale_resolution=int(slices.get("scale_resolution", 448)),
            use_image_id=bool(config.get("use_image_id", True)) and version > (2, 5),
            audio_pool_step=int(config.get("audio_pool_step", 2 if version == (2, 6) else 5)),
            audio_chunk_s=float(config.get("audio_chunk_length", 1.0)),
            drop_vision_last_layer=bool(config.get("drop_vision_last_layer", True)),
        )

    @property
    def strip_positions(self) -> bool:
        """Version 2.5 numbered the patches of a slice as one long row."""
        return self.version == (2, 5)


def _speech(config: Mapping[str, Any]) -> SpeechConfig:
    described = config.get("tts_config")
    if not described or not config.get("init_tts", True):
        raise CheckpointError("init_tts: this checkpoint has no speech decoder; leave it out", param="init_tts")
    parsed = SpeechConfig.from_hf(described)
    if parsed.llm_dim != config["hidden_size"]:
        raise CheckpointError(f"tts_config: llm_dim {parsed.llm_dim} is not the hidden_size {config['hidden_size']}")
    return parsed


def _version(config: Mapping[str, Any], model_type: str) -> tuple[int, ...]:
    """The `version` field as a tuple; releases before it existed are told apart by their sizes."""
    if "version" in config:
        try:
            return tuple(int(part) for part in str(config["version"]).split("."))
        except ValueError:
            raise CheckpointError(f"config.json: version {config['version']!r} is not a number") from None
    if model_type == "minicpmo":
        return (2, 6)
    return (2, 0) if config.get("hidden_size") == 2304 and config.get("query_num") == 64 else (2, 5)
