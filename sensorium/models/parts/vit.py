"""What Hugging Face's CLIP and SigLIP have in common: the names of a layer's tensors."""

from __future__ import annotations

# Rules from our names to theirs, inside one layer.
LAYER_RENAMES = (
    (r"^layers\.", "encoder.layers."),
    (r"\.norm(1|2)\.", r".layer_norm\1."),
    (r"\.attention\.qkv\.", ".self_attn.{piece}_proj."),
    (r"\.attention\.out\.", ".self_attn.out_proj."),
)
