"""What config.json says about the parts of a model, as typed fields.

No torch: a processor needs some of it, and runs where there is no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sensorium.errors import CheckpointError
from sensorium.layers.rope_config import RopeConfig

if TYPE_CHECKING:
    from sensorium.layers.mlp import Gelu

DecoderKind = Literal["llama", "qwen2", "qwen3"]
GELUS: dict[str, Gelu] = {"quick_gelu": "quick", "gelu": "none", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate: int
    norm_eps: float
    max_len: int
    rope: RopeConfig
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = False

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], kind: DecoderKind) -> DecoderConfig:
        if config.get("use_sliding_window"):
            raise CheckpointError("sliding-window attention (use_sliding_window) is not supported")
        try:
            width, num_heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            head_dim = int(config.get("head_dim") or width // num_heads)
            rope = RopeConfig.from_hf(config, head_dim)
            return cls(
                vocab_size=int(config["vocab_size"]),
                width=width,
                num_layers=int(config["num_hidden_layers"]),
                num_heads=num_heads,
                num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
                head_dim=head_dim,
                intermediate=int(config["intermediate_size"]),
                norm_eps=float(config.get("rms_norm_eps", 1e-6)),
                max_len=rope.max_len,
                rope=rope,
                qk_norm=kind == "qwen3",
                qkv_bias=kind == "qwen2",
                tied=bool(config.get("tie_word_embeddings", False)),
            )
        except KeyError as error:
            raise CheckpointError(f"config.json has no {error.args[0]!r}") from None


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """Defaults are those that published configurations leave out."""

    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate: int = 3072
    patch_size: int = 32
    image_size: int = 224
    norm_eps: float = 1e-5
    gelu: Gelu = "quick"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ClipConfig:
        gelu = config.get("hidden_act", "quick_gelu")
        if gelu not in GELUS:
            raise CheckpointError(f"vision_config: hidden_act {gelu!r} is not supported; known: {', '.join(GELUS)}")
        return cls(gelu=GELUS[gelu], **read_fields(config))

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    def depth(self, layer: int) -> int:
        """How many layers lie below feature layer `layer`: 0 is the embeddings; negative numbers count from the top."""
        depth = layer + self.num_layers + 1 if layer < 0 else layer
        if not 0 <= depth <= self.num_layers:
            raise CheckpointError(f"vision_feature_layer {layer} does not exist; there are {self.num_layers} layers")
        return depth


@dataclass(frozen=True, slots=True)
class SiglipConfig:
    width: int = 1152
    num_layers: int = 27
    num_heads: int = 16
    intermediate: int = 4304
    patch_size: int = 14
    image_size: int = 980
    norm_eps: float = 1e-6

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> SiglipConfig:
        return cls(**read_fields(config))

    @property
    def side(self) -> int:
        """Positions per axis of the table."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True)
class WhisperConfig:
    width: int
    num_layers: int
    num_heads: int
    intermediate: int
    num_mels: int = 80
    max_frames: int = 1500
    norm_eps: float = 1e-5

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> WhisperConfig:
        try:
            return cls(
                config["d_model"],
                config["encoder_layers"],
                config["encoder_attention_heads"],
                config["encoder_ffn_dim"],
                config.get("num_mel_bins", 80),
                config.get("max_source_positions", 1500),
            )
        except KeyError as error:
            raise CheckpointError(f"config.json: audio_config has no {error.args[0]!r}") from None


@dataclass(frozen=True, slots=True)
class QwenVisionConfig:
    width: int
    num_layers: int
    num_heads: int
    intermediate: int
    n_out: int
    patch_size: int
    merge: int
    temporal: int
    gated: bool
    """Qwen2.5: RMSNorm and SwiGLU instead of LayerNorm and quick gelu."""
    window: int = 0
    """Side of an attention window in merged cells; 0: none."""
    full_layers: frozenset[int] = frozenset()
    """Layers without windows."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], *, gated: bool) -> QwenVisionConfig:
        c, wanted = config, "silu" if gated else "quick_gelu"
        if c.get("hidden_act", wanted) != wanted:
            raise CheckpointError(f"vision_config: hidden_act {c['hidden_act']!r} is not supported; only {wanted} is")
        if c.get("in_chans", c.get("in_channels", 3)) != 3:
            raise CheckpointError("vision_config: only pictures of 3 channels are supported")
        try:
            patch, merge = int(c.get("patch_size", 14)), int(c.get("spatial_merge_size", 2))
            width = int(c["hidden_size"] if gated else c["embed_dim"])
            return cls(
                width=width,
                num_layers=int(c["depth"]),
                num_heads=int(c["num_heads"]),
                intermediate=int(c["intermediate_size"] if gated else width * c.get("mlp_ratio", 4)),
                n_out=int(c["out_hidden_size"] if gated else c["hidden_size"]),
                patch_size=patch,
                merge=merge,
                temporal=int(c.get("temporal_patch_size", 2)),
                gated=gated,
                window=int(c.get("window_size", 112)) // merge // patch if gated else 0,
                full_layers=frozenset(c.get("fullatt_block_indexes", (7, 15, 23, 31))),
            )
        except KeyError as error:
            raise CheckpointError(f"config.json: vision_config has no {error.args[0]!r}") from None


# What Hugging Face's CLIP and SigLIP call these fields.
_FIELDS = {
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "norm_eps": "layer_norm_eps",
}


def read_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a vision_config has, under our names."""
    return {ours: config[theirs] for ours, theirs in _FIELDS.items() if theirs in config}
