"""What Hugging Face's CLIP and SigLIP have in common: the names of their fields and of a layer's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Rules from our names to theirs, inside one layer.
LAYER_RENAMES = (
    (r"^layers\.", "encoder.layers."),
    (r"\.norm(1|2)\.", r".layer_norm\1."),
    (r"\.attention\.qkv\.", ".self_attn.{piece}_proj."),
    (r"\.attention\.out\.", ".self_attn.out_proj."),
)

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
