"""S3 speech tokenizer v2: 16 kHz sound to 25 codes a second, 0 to 6560. Only reference voices pass through it.

T mel frames (100 per second) · n codes · d width
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from sensorium.errors import CheckpointError, UnsupportedError
from sensorium.models.token2wav.features import TOKENIZER_BANDS, tokenizer_mel
from sensorium.models.token2wav.weights import Weights

EXTRA = "pip install 'sensorium[speech]'"
_HEAD_DIM, _TAPS, _DIGITS = 64, 31, 8
# Sound of more than 30 s is heard in windows, which overlap by 4 s: each gives up 2 s at an inner edge.
_WINDOW, _STRIDE, _EDGE_CODES = 3000, 2600, 50


class S3Tokenizer:
    """All sizes are read off the tensors. Source: S3Tokenizer, `model_v2.py`."""

    def __init__(self, weights: Weights) -> None:
        w = weights
        width = w.shape("encoder.conv1.weight")[0]
        self._convs = [
            (w.take(f"encoder.{name}.weight", width, n_in, 3), w.take(f"encoder.{name}.bias", width))
            for name, n_in in (("conv1", TOKENIZER_BANDS), ("conv2", width))
        ]
        num_blocks = w.count("encoder.blocks.{}.attn.query.weight")
        self._blocks = [_Block(w, f"encoder.blocks.{i}.", width) for i in range(num_blocks)]
        self._down = (
            w.take("quantizer._codebook.project_down.weight", _DIGITS, width),
            w.take("quantizer._codebook.project_down.bias", _DIGITS),
        )
        w.finish()

    @torch.inference_mode()
    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """[S] float32 at 16 kHz to codes [n] int64, n = about S / 640."""
        mel = tokenizer_mel(samples.to(self._down[0].device))
        if mel.shape[1] <= _WINDOW:
            return self._codes(mel)
        windows = [self._codes(mel[:, at : at + _WINDOW]) for at in range(0, mel.shape[1], _STRIDE)]
        last = len(windows) - 1
        return torch.cat(
            [
                codes[_EDGE_CODES if i else 0 : len(codes) - _EDGE_CODES if i < last else len(codes)]
                for i, codes in enumerate(windows)
            ]
        )

    def encode(self, mel: torch.Tensor) -> torch.Tensor:
        """[128, T] to the quantiser's input [n, 8], before it is squashed and rounded."""
        x = mel[None]
        for weight, bias in self._convs:
            x = F.gelu(F.conv1d(x, weight, bias, stride=2, padding=1))
        x = x[0].T
        angles = torch.outer(
            torch.arange(len(x), dtype=torch.float32, device=x.device),
            10000.0 ** -(torch.arange(0, _HEAD_DIM, 2, dtype=torch.float32, device=x.device) / _HEAD_DIM),
        ).repeat(1, 2)
        for block in self._blocks:
            x = block(x, angles.cos(), angles.sin())
        return F.linear(x, *self._down)

    def _codes(self, mel: torch.Tensor) -> torch.Tensor:
        limit = 1.0 - 1e-6
        digits = (self.encode(mel).tanh().clamp(-limit, limit) + 1.0).round().long()
        return (digits * 3 ** torch.arange(_DIGITS, device=mel.device)).sum(1)


class _Block:
    """Attention with a short convolution over its values beside it, then an MLP."""

    def __init__(self, w: Weights, prefix: str, d: int) -> None:
        def norm(name: str) -> tuple[torch.Tensor, torch.Tensor]:
            return w.take(f"{prefix}{name}.weight", d), w.take(f"{prefix}{name}.bias", d)

        def linear(name: str, n_out: int, n_in: int) -> tuple[torch.Tensor, torch.Tensor]:
            return w.take(f"{prefix}{name}.weight", n_out, n_in), w.take(f"{prefix}{name}.bias", n_out)

        self.norm1, self.norm2 = norm("attn_ln"), norm("mlp_ln")
        self.q, self.v, self.out = (linear(f"attn.{name}", d, d) for name in ("query", "value", "out"))
        self.k = w.take(f"{prefix}attn.key.weight", d, d)
        self.taps = w.take(f"{prefix}attn.fsmn_block.weight", d, 1, _TAPS)
        self.up, self.down = linear("mlp.0", 4 * d, d), linear("mlp.2", d, 4 * d)

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x [n, d]; cos and sin [n, 64]."""
        n, d = x.shape
        y = F.layer_norm(x, (d,), *self.norm1, eps=1e-6)
        q, k, v = F.linear(y, *self.q), F.linear(y, self.k), F.linear(y, *self.v)
        heads = [part.view(n, -1, _HEAD_DIM).transpose(0, 1) for part in (q, k, v)]
        q, k = (part * cos + _half_turned(part) * sin for part in heads[:2])
        seen = F.scaled_dot_product_attention(q[None], k[None], heads[2][None])[0].transpose(0, 1).reshape(n, d)
        memory = F.conv1d(v.T[None], self.taps, padding=_TAPS // 2, groups=d)[0].T + v
        x = x + F.linear(seen, *self.out) + memory
        y = F.layer_norm(x, (d,), *self.norm2)
        return x + F.linear(F.gelu(F.linear(y, *self.up)), *self.down)


def _half_turned(x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat((-right, left), -1)


def read_onnx_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tokenizer's tensors, named as in PyTorch, out of the initialisers of its ONNX graph.

    Exported graphs keep the names of modules in their nodes ("/blocks.0/attn/query/MatMul") but not in every tensor.
    Raises UnsupportedError naming the extra where the onnx package is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise UnsupportedError(f"reading {path.name} needs the onnx package: {EXTRA}", param="init_tts") from None
    if not path.is_file():
        raise CheckpointError(f"the codec folder {path.parent} has no {path.name}")
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # protobuf raises classes of its own, which differ between versions
        raise CheckpointError(f"{path.name} cannot be read as an ONNX model: {error}"[:500]) from None
    values = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, torch.Tensor] = {}
    for node in graph.node:
        arrays = [torch.from_numpy(numpy_helper.to_array(values[i]).copy()) for i in node.input if i in values]
        found |= _named(node, arrays, found)
    return found


def _named(node: Any, arrays: list[torch.Tensor], found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of the weights that one node applies; nothing for constants of shapes, masks and scales."""
    if not arrays:
        return {}
    path = node.name.lstrip("/").rpartition("/")[0].replace("/", ".").replace("mlp.mlp.", "mlp.")
    stem = f"encoder.{path}"
    if node.op_type == "Conv":
        if "blocks." not in path:
            stem = "encoder.conv2" if "encoder.conv1.weight" in found else "encoder.conv1"
        return {f"{stem}.{kind}": array for kind, array in zip(("weight", "bias"), arrays, strict=False)}
    if "blocks." not in path:
        stem = "quantizer._codebook.project_down"
    if node.op_type == "LayerNormalization":
        return {f"{stem}.{kind}": array for kind, array in zip(("weight", "bias"), arrays, strict=False)}
    if node.op_type == "MatMul" and arrays[0].dim() == 2 and ("blocks." in path or arrays[0].shape[1] == _DIGITS):
        return {f"{stem}.weight": arrays[0].T}
    if node.op_type == "Add" and arrays[0].dim() == 1 and ("blocks." in path or arrays[0].shape == (_DIGITS,)):
        return {f"{stem}.bias": arrays[0]}
    return {}
