"""MiniCPM-o 4.5's speech LM (`tts.*`): a small Llama from spoken text and the backbone's hidden states to codes.

N text tokens · E width · V codes. Source: speech.md 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.kernels import reference as ops
from sensorium.layers.embedding import Embedding
from sensorium.layers.linear import Linear
from sensorium.layers.mlp import GatedMlp
from sensorium.models.minicpm_speech_config import SpeechConfig
from sensorium.models.parts import decoder
from sensorium.models.parts.decoder import Decoder
from sensorium.types import ModelInputs

# Our parameter path -> its name in checkpoints, below `tts.`.
RENAMES = (
    (r"^text\.", "emb_text."),
    (r"^decoder\.embedding\.", "emb_code.0."),
    (r"^decoder\.head\.gain$", "head_code.0.parametrizations.weight.original0"),
    (r"^decoder\.head\.weight$", "head_code.0.parametrizations.weight.original1"),
    (r"^projector\.", "projector_semantic."),
    (r"^projector_semantic\.gate_up\.", "projector_semantic.{piece}_proj."),
    (r"^projector_semantic\.down\.", "projector_semantic.down_proj."),
    (r"^decoder\.", ""),
    *((rule, name) for rule, name in decoder.RENAMES if "head" not in rule and "embedding" not in rule),
)
# In released checkpoints, and read by nothing.
UNUSED = ("projector_spk.", "model.embed_tokens.")


class NormedHead(Linear):
    """A product whose weight checkpoints keep as direction and length: gain * v / |v|, row by row."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.gain = nn.Parameter(torch.empty(n_out, 1), requires_grad=False)

    def pieces(self, name: str) -> dict[str, slice]:
        return {"": slice(None)} if name == "gain" else super().pieces(name)

    @torch.no_grad()
    def after_load(self) -> None:
        """The weight becomes the product; until then it is the direction."""
        weight = self.weight.float()
        self.weight.copy_(weight * (self.gain.float() / weight.norm(dim=1, keepdim=True)))

    @torch.no_grad()
    def before_save(self) -> None:
        self.gain.copy_(self.weight.float().norm(dim=1, keepdim=True))


class ReluMlp(nn.Module):
    """linear2(relu(linear1(x))), with biases."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.linear1 = Linear(n_in, n_out, bias=True)
        self.linear2 = Linear(n_out, n_out, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(F.relu(self.linear1(x)))


class SpeechLM(nn.Module):
    """Condition rows and codes in, distributions of codes out. One code is 40 ms of sound."""

    position_axes = 1

    def __init__(self, config: SpeechConfig) -> None:
        super().__init__()
        self.config = config
        c = config.decoder
        self.num_codes, self.eos_code, self.hidden_size = c.vocab_size, config.eos_code, c.width
        self.num_layers, self.num_kv_heads, self.head_dim, self.max_len = (
            c.num_layers, c.num_kv_heads, c.head_dim, c.max_len,
        )  # fmt: skip
        self.text = Embedding(config.num_text_tokens, c.width)
        self.projector: nn.Module
        if config.projector_type == "mlp":
            self.projector = ReluMlp(config.llm_dim, c.width)
        elif config.projector_type == "minicpm":
            self.projector = GatedMlp(config.llm_dim, config.projector_width, bias=True, n_out=c.width)
        else:
            self.projector = Linear(config.llm_dim, c.width)
        self.decoder = Decoder(c)
        self.decoder.head = NormedHead(c.width, c.vocab_size)

    def condition(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Rows [N, E] of spoken text: ids [N], and the backbone's final-norm states [N, llm_dim] after each of them."""
        projected = self.projector(hidden)
        if self.config.normalize_projected:
            projected = F.normalize(projected, dim=-1, eps=1e-12)
        return self.text(ids) + projected

    def marks(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows [1, E] of the end of the text and of the beginning of the sound."""
        ids = torch.tensor([self.config.text_eos_id, self.config.audio_bos_id], device=self.text.weight.device)
        end, begin = self.text(ids).split(1)
        return end, begin

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """[M] -> [M, E]."""
        return self.decoder.embed(codes)

    def rotate(self, keys: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        """Keys [..., n, K, D] of the cache, turned on by so many positions, [n]."""
        cos, sin = self.decoder.rope(by, keys.dtype)
        return ops.rope(keys, cos, sin)

    def forward(self, x: torch.Tensor, inputs: ModelInputs) -> torch.Tensor:
        """[M, E] -> hidden [M, E] after the final norm, or only the rows that inputs ask for."""
        return self.decoder(x, inputs)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[M, E] -> [M, V]."""
        return self.decoder.logits(hidden)

    def fuse(self, fused_class: Any) -> None:
        """As TextModel.fuse."""
        self.decoder.fuse(fused_class)
