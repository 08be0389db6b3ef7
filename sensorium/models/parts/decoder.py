"""The text backbone of every family here: Llama, Qwen2 and Qwen3 differ only in configuration.

N packed tokens · E width · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from sensorium.kernels.cpu_plan import CpuPlan
from sensorium.kernels.fused import DecoderWeights, LayerWeights
from sensorium.layers.attention import CausalAttention
from sensorium.layers.embedding import Embedding
from sensorium.layers.linear import Linear
from sensorium.layers.mlp import GatedMlp
from sensorium.layers.norm import RMSNorm
from sensorium.layers.rope import Rope
from sensorium.models.base import SpeechModel
from sensorium.models.parts.configs import DecoderConfig
from sensorium.types import MediaItem, ModelInputs

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
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        inputs: ModelInputs,
        kv: torch.Tensor | None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [N, E] -> [N, E], or with rows [M] those rows of it; x may be overwritten."""
        ops, attention = inputs.plan.ops, self.attention
        qkv = ops.norm_linear(x, self.norm1, attention.qkv)
        mixed = attention.mix(qkv, cos, sin, inputs, kv)
        if rows is not None:
            mixed, x = mixed.index_select(0, rows), x.index_select(0, rows)
        x = ops.linear_add(mixed, attention.out, x)
        return ops.linear_add(ops.norm_gated(x, self.norm2, self.mlp.gate_up), self.mlp.down, x)

    def weights(self) -> LayerWeights:
        a, mlp = self.attention, self.mlp
        q_norm, k_norm = (None, None) if a.eps is None else (a.q_norm, a.k_norm)
        return LayerWeights(
            self.norm1.weight, a.qkv.weight, a.qkv.bias, q_norm, k_norm, a.out.weight,
            self.norm2.weight, mlp.gate_up.weight, mlp.down.weight,
        )  # fmt: skip


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embedding = Embedding(config.vocab_size, config.width)
        self.rope = Rope(config.rope)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied else Linear(config.width, config.vocab_size)
        self._fused: Any = None

    def fuse(self, fused_class: Any) -> None:
        """Run on the compiled kernels that kernels.select found. They copy the weights, which may change no more."""
        blocks: list[Any] = list(self.layers)
        attention = blocks[0].attention
        heads, kv_heads = attention.heads
        self._fused = fused_class(
            DecoderWeights(
                heads=heads,
                kv_heads=kv_heads,
                head_dim=attention.head_dim,
                eps=self.norm.eps,
                scale=attention.scale,
                layers=[block.weights() for block in blocks],
                norm=self.norm.weight,
                head=self.embedding.weight if self.head is None else self.head.weight,
            )
        )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embedding(ids)

    def forward(self, x: torch.Tensor, inputs: ModelInputs) -> torch.Tensor:
        """[N, E] -> hidden [N, E], after the final norm; only those of inputs.rows where they are given."""
        cos, sin = self.rope(inputs.positions, x.dtype)
        if self._fused is not None and isinstance(inputs.plan, CpuPlan) and inputs.kv is not None:
            return self._fused.forward(x, cos, sin, inputs.plan, inputs.kv, inputs.rows)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            rows = inputs.rows if i == last else None
            x = layer(x, cos, sin, inputs, None if inputs.kv is None else inputs.kv[i], rows)
        return inputs.plan.ops.norm(x, self.norm)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[M, E] -> [M, V]."""
        if self._fused is not None:
            return self._fused.logits(hidden)
        return self.embedding.logits(hidden) if self.head is None else self.head(hidden)


class TextModel(nn.Module):
    """The text half of a family's Model: its decoder, and the sizes that the engine asks for."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.vocab_size, self.max_model_len = config.vocab_size, config.max_len
        self.num_layers, self.num_kv_heads, self.head_dim = config.num_layers, config.num_kv_heads, config.head_dim
        self.hidden_size = config.width
        self.speech: SpeechModel | None = None
        self.position_axes = 3 if config.rope.sections else 1
        self.decoder = Decoder(config)

    def fuse(self, fused_class: Any) -> None:
        self.decoder.fuse(fused_class)

    def wrap_encoders(self, wrap: Callable[[Callable[..., torch.Tensor], bool], Callable[..., torch.Tensor]]) -> None:
        """For families whose towers can be recorded as graphs by shape; see engine.graphs.ShapeGraphs."""

    def rehearse(self, frames: Sequence[MediaItem]) -> Iterator[None]:
        """See models.base.Model: here there is nothing to rehearse."""
        return iter(())

    def turn(self, before: torch.Tensor, after: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return self.decoder.rope.turn(before, after)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder.embed(ids)

    def forward(self, x: torch.Tensor, inputs: ModelInputs) -> torch.Tensor:
        return self.decoder(x, inputs)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder.logits(hidden)
