"""The modules of the published models by their types: which children a type has, in the order they are made.

Types are those of transformers 4.51 with attn_implementation="sdpa".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Child:
    """A module's child. many: a ModuleList of such. bare: it holds no tensors, and is there without any.

    beside: it is there if that sibling is. absent: its type where it has no tensors.
    """

    type: str
    many: bool = False
    bare: bool = False
    beside: str = ""
    absent: str = ""


Table = Mapping[str, Mapping[str, Child]]


def tables(hf_config: Mapping[str, Any]) -> tuple[str, Table]:
    """The type of the whole model, and the children of each type known."""
    names = hf_config.get("architectures") or []
    root = str(names[0]) if names else "Model"
    if hf_config.get("model_type") not in ("minicpmv", "minicpmo"):
        return root, {}
    return root, {**_minicpm(root, _language(hf_config)), **_SIGLIP, **_RESAMPLER, **_WHISPER, **_SPEECH}


def _language(hf_config: Mapping[str, Any]) -> str:
    version = str(hf_config.get("version", "2.6" if hf_config.get("model_type") == "minicpmo" else "2.5"))
    return {"2.6": "Qwen2", "4.5": "Qwen3"}.get(version, "Llama")


def _minicpm(root: str, language: str) -> Table:
    return {
        root: {
            "llm": Child(f"{language}ForCausalLM"),
            "vpm": Child("SiglipVisionTransformer"),
            "resampler": Child("Resampler"),
            "apm": Child("MiniCPMWhisperEncoder"),
            "audio_avg_pooler": Child("AvgPool1d", bare=True, beside="apm"),
            "audio_projection_layer": Child("MultiModalProjector"),
            "tts": Child("MiniCPMTTS"),
        },
        f"{language}ForCausalLM": {"model": Child(f"{language}Model"), "lm_head": Child("Linear")},
        **_decoder(language),
        **_decoder("Llama"),
    }


def _decoder(name: str) -> Table:
    norm = Child(f"{name}RMSNorm")
    own_norms = {"q_norm": norm, "k_norm": norm} if name == "Qwen3" else {}
    linear = Child("Linear")
    return {
        f"{name}Model": {
            "embed_tokens": Child("Embedding"),
            "layers": Child(f"{name}DecoderLayer", many=True),
            "norm": norm,
            "rotary_emb": Child(f"{name}RotaryEmbedding", bare=True),
        },
        f"{name}DecoderLayer": {
            "self_attn": Child(f"{name}Attention"),
            "mlp": Child(f"{name}MLP"),
            "input_layernorm": norm,
            "post_attention_layernorm": norm,
        },
        f"{name}Attention": {"q_proj": linear, "k_proj": linear, "v_proj": linear, "o_proj": linear, **own_norms},
        f"{name}MLP": {
            "gate_proj": linear,
            "up_proj": linear,
            "down_proj": linear,
            "act_fn": Child("SiLU", bare=True),
        },
    }


_LINEAR, _NORM = Child("Linear"), Child("LayerNorm")
_SIGLIP: Table = {
    "SiglipVisionTransformer": {
        "embeddings": Child("SiglipVisionEmbeddings"),
        "encoder": Child("SiglipEncoder"),
        "post_layernorm": _NORM,
    },
    "SiglipVisionEmbeddings": {"patch_embedding": Child("Conv2d"), "position_embedding": Child("Embedding")},
    "SiglipEncoder": {"layers": Child("SiglipEncoderLayer", many=True)},
    "SiglipEncoderLayer": {
        "self_attn": Child("SiglipAttention"),
        "layer_norm1": _NORM,
        "mlp": Child("SiglipMLP"),
        "layer_norm2": _NORM,
    },
    "SiglipAttention": {"k_proj": _LINEAR, "v_proj": _LINEAR, "q_proj": _LINEAR, "out_proj": _LINEAR},
    "SiglipMLP": {"activation_fn": Child("PytorchGELUTanh", bare=True), "fc1": _LINEAR, "fc2": _LINEAR},
}
_RESAMPLER: Table = {
    "Resampler": {
        "kv_proj": Child("Linear", absent="Identity"),
        "attn": Child("MultiheadAttention"),
        "ln_q": _NORM,
        "ln_kv": _NORM,
        "ln_post": _NORM,
    },
    "MultiheadAttention": {"out_proj": Child("NonDynamicallyQuantizableLinear")},
}
_WHISPER: Table = {
    "MiniCPMWhisperEncoder": {
        "conv1": Child("Conv1d"),
        "conv2": Child("Conv1d"),
        "embed_positions": Child("Embedding"),
        "layers": Child("MiniCPMWhisperEncoderLayer", many=True),
        "layer_norm": _NORM,
    },
    "MiniCPMWhisperEncoderLayer": {
        "self_attn": Child("WhisperSdpaAttention"),
        "self_attn_layer_norm": _NORM,
        "activation_fn": Child("GELUActivation", bare=True),
        "fc1": _LINEAR,
        "fc2": _LINEAR,
        "final_layer_norm": _NORM,
    },
    "WhisperSdpaAttention": {"k_proj": _LINEAR, "v_proj": _LINEAR, "q_proj": _LINEAR, "out_proj": _LINEAR},
}
_SPEECH: Table = {
    "MultiModalProjector": {"linear1": _LINEAR, "relu": Child("ReLU", bare=True), "linear2": _LINEAR},
    "MiniCPMTTS": {
        "emb_text": Child("Embedding"),
        "model": Child("LlamaModel"),
        "projector_spk": Child("MultiModalProjector"),
        "projector_semantic": Child("MultiModalProjector"),
        "emb_code": Child("Embedding", many=True),
        "head_code": Child("ParametrizedLinear", many=True),
    },
    "ParametrizedLinear": {"parametrizations": Child("ModuleDict")},
    "ModuleDict": {"weight": Child("ParametrizationList")},
    "ParametrizationList": {"0": Child("_WeightNorm", bare=True)},
}
