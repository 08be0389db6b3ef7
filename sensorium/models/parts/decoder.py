"""The text backbone of every family here: Llama, Qwen2 and Qwen3 differ only in configuration.

N packed tokens · E width · V vocabulary
"""

from __future__ import annotations

import torch
from torch import nn

from sensorium.layers.attention import CausalAttention
from sensorium.layers.embedding import Embedding
from sensorium.layers.linear import Linear
from sensorium.layers.mlp import GatedMlp
from sensorium.layers.norm import RMSNorm
from sensorium.layers.rope import Rope
from sensorium.models.parts.configs import DecoderConfig
from sensorium.types import ModelInputs

# Our parameter path -> the name Hugging Face checkpoints use, below the language model's own prefix.
RENAMES = (
    (r"^embedding\.", "model.embed_tokens."),
    (r"^head\.", "lm_head."),
    (r"^norm\.", "model.norm."),
    (r"^layers\.", "model.layers."),
    (r"\.norm1\.", ".input_layernorm."),
    (r"\.norm2\.", ".post_attention_layernorm."),
    (r"\.attention\.(q|k)_norm$", r".self_attn.\1_norm.weight"),
    (r"\.attention\.qkv\.", ".self_attn.{piece}_proj."),
    (r"\.attention\.out\.", ".self_attn.o_proj."),
    (r"\.mlp\.gate_up\.", ".mlp.{piece}_proj."),
    (r"\.mlp\.down\.", ".mlp.down_proj."),
)


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        c = config
        self.norm1 = RMSNorm(c.width, c.norm_eps)
        self.attention = CausalAttention(
            c.width,
            c.num_heads,
            c.num_kv_heads,
            c.head_dim,
            qkv_bias=c.qkv_bias,
            qk_norm_eps=c.norm_eps if c.qk_norm else None,
        )
        self.norm2 = RMSNorm(c.width, c.norm_eps)
        self.mlp = GatedMlp(c.width, c.intermediate)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, inputs: ModelInputs, kv: torch.Tensor | None
    ) -> torch.Tensor:
        """x [N, E] -> [N, E]; x may be overwritten."""
        ops, attention = inputs.plan.ops, self.attention
        qkv = ops.norm_linear(x, self.norm1, attention.qkv)
        x = ops.linear_add(attention.mix(qkv, cos, sin, inputs, kv), attention.out, x)
        return ops.linear_add(ops.norm_gated(x, self.norm2, self.mlp.gate_up), self.mlp.down, x)


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config.vocab_size, config.width)
        self.rope = Rope(config.rope)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied else Linear(config.width, config.vocab_size)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embedding(ids)

    def forward(self, x: torch.Tensor, inputs: ModelInputs) -> torch.Tensor:
        """[N, E] -> hidden [N, E], after the final norm."""
        cos, sin = self.rope(inputs.positions, x.dtype)
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, inputs, None if inputs.kv is None else inputs.kv[i])
        return inputs.plan.ops.norm(x, self.norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[M, E] -> [M, V]."""
        return self.embedding.logits(hidden) if self.head is None else self.head(hidden)


class TextModel(nn.Module):
    """The text half of a family's Model: its decoder, and the sizes that the engine asks for."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.vocab_size, self.max_model_len = config.vocab_size, config.max_len
        self.num_layers, self.num_kv_heads, self.head_dim = config.num_layers, config.num_kv_heads, config.head_dim
        self.hidden_size = config.width
        self.position_axes = 3 if config.rope.sections else 1
        self.decoder = Decoder(config)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder.embed(ids)

    def forward(self, x: torch.Tensor, inputs: ModelInputs) -> torch.Tensor:
        return self.decoder(x, inputs)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder.logits(hidden)
