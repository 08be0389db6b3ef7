"""tts_config of MiniCPM-o's config.json: the speech LM. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sensorium.errors import CheckpointError
from sensorium.models.parts.configs import DecoderConfig

AttentionType = Literal["full_attention", "sliding_window", "sliding_recompute", "reindex"]
# Field -> the values that are supported, the one that stands for a missing field first. The reference's own defaults of
# those in _REQUIRED are not supported, so they must be there.
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "num_vq": (1,),
    "backbone_model": ("llama",),
    "interleaved": (False,),
    "projector_type": ("mlp", "minicpm", "default"),
    "attention_type": ("sliding_recompute", "full_attention", "sliding_window", "reindex"),
    "hidden_act": ("silu",),
    "llm_down_scale": (False,),
    "rms_norm_eps": (1e-6,),
    "rope_theta": (10000.0,),
    "rope_scaling": (None,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
}
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "condition_type": ("hidden_text_merge",),
    "audio_tokenizer_type": ("s3tokenizer", "s3tokenizer_step_audio"),
}


@dataclass(frozen=True, slots=True)
class SpeechConfig:
    """A field that the file leaves out has the value of the reference's own defaults."""

    decoder: DecoderConfig
    """Its vocabulary are the codes; the last one is the end."""
    llm_dim: int
    num_text_tokens: int
    audio_bos_id: int
    text_eos_id: int
    projector_type: Literal["mlp", "minicpm", "default"]
    projector_width: int
    normalize_projected: bool
    attention_type: AttentionType
    token_window: int
    """Rows that sliding_window keeps."""
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> SpeechConfig:
        """config: the tts_config. Raises CheckpointError that names the field of a value that is not supported."""
        for name, known in _REQUIRED.items():
            _check(name, config.get(name), known)
        chosen = {name: config.get(name, known[0]) for name, known in _CHOICES.items()}
        for name, value in chosen.items():
            _check(name, value, _CHOICES[name])
        return cls(
            decoder=_decoder(config),
            llm_dim=_at_least_1(config, "llm_dim", 2560),
            num_text_tokens=_text_tokens(config),
            audio_bos_id=int(config.get("audio_bos_token_id", 21132)),
            text_eos_id=int(config.get("text_eos_token_id", 21133)),
            projector_type=chosen["projector_type"],
            projector_width=_at_least_1(config, "llm_intermediate_size", 768),
            normalize_projected=bool(config.get("normalize_projected_hidden", False)),
            attention_type=chosen["attention_type"],
            token_window=_at_least_1(config, "streaming_sliding_window_audio_window_size", 300),
            temperature=float(config.get("temperature", 0.8)),
            top_p=float(config.get("top_p", 0.85)),
            top_k=int(config.get("top_k", 25)),
            repetition_penalty=float(config.get("repetition_penalty", 1.05)),
        )

    @property
    def eos_code(self) -> int:
        return self.decoder.vocab_size - 1


def _decoder(config: Mapping[str, Any]) -> DecoderConfig:
    fields = {
        "vocab_size": _at_least_1(config, "num_audio_tokens", 4097),
        "hidden_size": _at_least_1(config, "hidden_size", 768),
        "intermediate_size": _at_least_1(config, "intermediate_size", 3072),
        "num_hidden_layers": _at_least_1(config, "num_hidden_layers", 20),
        "num_attention_heads": _at_least_1(config, "num_attention_heads", 12),
        "max_position_embeddings": _at_least_1(config, "max_position_embeddings", 4096),
        "num_key_value_heads": _at_least_1(config, "num_key_value_heads", 12),
    }
    return DecoderConfig.from_hf(fields, "llama")


def _text_tokens(config: Mapping[str, Any]) -> int:
    num = _at_least_1(config, "num_text_tokens", 21178)
    for name, default in (("audio_bos_token_id", 21132), ("text_eos_token_id", 21133)):
        if not 0 <= int(config.get(name, default)) < num:
            raise CheckpointError(f"tts_config: {name} {config.get(name, default)} is not below num_text_tokens {num}")
    return num


def _check(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        names = ", ".join(str(one) for one in known)
        raise CheckpointError(f"tts_config: {name} {value!r} is not supported; supported: {names}")


def _at_least_1(config: Mapping[str, Any], name: str, default: int) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"tts_config: {name} must be a whole number from 1, not {value!r}")
    return value
