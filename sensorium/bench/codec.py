"""Codecs of any size with random weights: a folder for tests, or parts made on the device for measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from sensorium.models.token2wav.assets import Parts
from sensorium.models.token2wav.config import MELS, FlowConfig, read_flow_config
from sensorium.models.token2wav.flow import Flow
from sensorium.models.token2wav.hift import Kind, source_noise
from sensorium.models.token2wav.hift_causal import CausalVocoder
from sensorium.models.token2wav.hift_original import OriginalVocoder
from sensorium.models.token2wav.prompt import VoicePrompt
from sensorium.models.token2wav.s3 import S3Tokenizer
from sensorium.models.token2wav.trimming import Trimming
from sensorium.models.token2wav.weights import Weights

# So that the vocoder hums at a voice's pitch, and not at full scale.
_OFFSETS = {"f0_predictor.classifier.bias": 180.0, "conv_post.bias": -3.0}


@dataclass(frozen=True, slots=True)
class CodecSizes:
    """vocoder and pitch: channels of the first vocoder layer and of the pitch predictor; tokenizer: multiple of 64."""

    flow: FlowConfig
    vocoder: int
    pitch: int
    tokenizer: int
    tokenizer_blocks: int


FULL = CodecSizes(FlowConfig(6561, 192, 512, 8, 2048, 6, 4, 16, 8, 64, 512, 2048, 0.7), 512, 512, 1280, 6)
"""The released codec."""
SMALL = CodecSizes(FlowConfig(6561, 192, 48, 4, 96, 2, 2, 2, 2, 16, 48, 96, 0.7), 32, 24, 64, 1)


class RandomWeights(Weights):
    """Whatever is asked for. `taken` keeps it under its name where `keep` is set."""

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        keep: bool = False,
        blocks: int = 0,
    ) -> None:
        super().__init__({}, "random weights", device, dtype)
        self.taken: dict[str, torch.Tensor] = {}
        self._shapes, self._keep, self._blocks = dict(shapes or {}), keep, blocks
        self._generator = torch.Generator().manual_seed(seed)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def count(self, pattern: str) -> int:
        return self._blocks

    def take(self, name: str, *shape: int | None) -> torch.Tensor:
        size = [n or 1 for n in shape]
        tensor = torch.randn(size, generator=self._generator)
        if name.endswith("alpha") or (name.endswith("weight") and len(size) == 1):
            tensor = 1.0 + 0.1 * tensor
        elif len(size) == 1:
            tensor = 0.02 * tensor + _OFFSETS.get(name, 0.0)
        else:
            tensor = tensor / math.sqrt(math.prod(size[1:])) * (0.2 if name == "conv_post.weight" else 1.0)
        tensor = tensor.to(self.device, self.dtype)
        if self._keep:
            self.taken[name] = tensor
        return tensor

    def finish(self) -> None:
        pass


def vocoder_shapes(kind: Kind, sizes: CodecSizes) -> dict[str, tuple[int, ...]]:
    """The tensors that the vocoders read their sizes off."""
    causal = kind == "causal"
    return {
        "conv_pre.weight": (sizes.vocoder, MELS, 5 if causal else 7),
        "f0_predictor.condnet.0.weight": (sizes.pitch, MELS, 4 if causal else 3),
    }


def random_parts(
    sizes: CodecSizes,
    kind: Kind,
    n_timesteps: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    trimming: Trimming = "reference",
    graphs: bool = False,
) -> Parts:
    """A codec without voice cloning: give it voices of `random_voice`."""

    def vocoder(kind: Kind) -> OriginalVocoder | CausalVocoder:
        weights = RandomWeights(vocoder_shapes(kind, sizes), device)
        if kind == "causal":
            return CausalVocoder(weights, source_noise(kind), dtype)
        return OriginalVocoder(weights, source_noise(kind))

    flow = Flow(
        RandomWeights(device=device, dtype=dtype),
        sizes.flow,
        n_timesteps,
        silent_ahead=kind == "original",
        trimming=trimming,
        graphs=graphs,
    )
    whole = vocoder("original")
    assert isinstance(whole, OriginalVocoder)
    return Parts(flow, whole, whole if kind == "original" else vocoder("causal"), None)


def random_voice(sizes: CodecSizes, seconds: float, seed: int = 0) -> VoicePrompt:
    generator = torch.Generator().manual_seed(seed)
    n = int(25 * seconds)
    return VoicePrompt(
        torch.randint(sizes.flow.vocab, (n,), generator=generator),
        torch.randn(sizes.flow.speaker, generator=generator),
        torch.randn(2 * n, MELS, generator=generator) - 4.0,
    )


def write_folder(folder: Path, kind: Kind, sizes: CodecSizes = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    """All files of a codec folder but the two ONNX graphs; returns the tensors that the tokenizer's graph must hold."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flow.yaml").write_text(flow_yaml(sizes.flow), "utf-8")
    weights = RandomWeights(seed=seed, keep=True)
    Flow(weights, read_flow_config(folder / "flow.yaml"), 1)
    torch.save(weights.taken, folder / "flow.pt")
    _write_vocoder(folder / "hift.pt", kind, sizes, seed)
    if kind == "causal":
        _write_vocoder(folder / "hift_original.pt", "original", sizes, seed)
        mel = {
            "n_fft": 1920, "num_mels": 80, "sampling_rate": 24000, "hop_size": 480, "win_size": 1920,
            "fmin": 0, "fmax": 8000, "center": False,
        }  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump({"feat_extractor": mel}), "utf-8")
    weights = RandomWeights(
        {"encoder.conv1.weight": (sizes.tokenizer, 128, 3)}, seed=seed, keep=True, blocks=sizes.tokenizer_blocks
    )
    S3Tokenizer(weights)
    return weights.taken


def _write_vocoder(path: Path, kind: Kind, sizes: CodecSizes, seed: int) -> None:
    """Convolutions but those of the source are weight-normed in released files."""
    weights = RandomWeights(vocoder_shapes(kind, sizes), seed=seed, keep=True)
    (CausalVocoder if kind == "causal" else OriginalVocoder)(weights, torch.zeros(1, 9))
    tensors = {}
    for name, tensor in weights.taken.items():
        if tensor.dim() < 3 or name.startswith("source_downs"):
            tensors[name] = tensor
            continue
        stem = name.removesuffix("weight") + "parametrizations.weight.original"
        tensors[stem + "0"] = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
        tensors[stem + "1"] = tensor
    torch.save(tensors, path)


def flow_yaml(c: FlowConfig) -> str:
    """As released, with its constructor tags."""
    return f"""\
flow: !new:cosyvoice2.flow.flow.CausalMaskedDiffWithXvec
  input_size: {c.width}
  output_size: 80
  spk_embed_dim: {c.speaker}
  output_type: mel
  vocab_size: {c.vocab}
  encoder: !new:cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2
    input_size: {c.width}
    output_size: {c.width}
    input_layer: linear
    pre_lookahead_len: 3
    num_blocks: {c.num_blocks}
    num_up_blocks: {c.num_up_blocks}
    up_stride: 2
    up_scale_factor: 2
    attention_heads: {c.encoder_heads}
    pos_enc_layer_type: rel_pos_espnet
    selfattention_layer_type: rel_selfattn
    key_bias: true
    linear_units: {c.encoder_ffn}
    dropout_rate: 0.1
    normalize_before: true
  decoder: !new:cosyvoice2.flow.flow_matching.CausalConditionalCFM
    inference_cfg_rate: {c.cfg_rate}
    estimator: !new:cosyvoice2.flow.decoder_dit.DiT
      in_channels: 320
      out_channels: 80
      mlp_ratio: {c.mlp / c.hidden}
      depth: {c.depth}
      num_heads: {c.heads}
      head_dim: {c.head_dim}
      hidden_size: {c.hidden}
"""
