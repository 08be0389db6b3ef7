"""The engine's codec in training: its modules are made anew of live parameters in every step.

B windows · T frames · n codes · C width
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from sensorium.bench.codec import RandomWeights
from sensorium.models.token2wav.config import MELS, FlowConfig
from sensorium.models.token2wav.dit import Estimator, _Block, _modulation
from sensorium.models.token2wav.encoder import CODE_PAST, FRAME_PAST, Encoder, EncoderPast
from sensorium.models.token2wav.hift import Hift
from sensorium.models.token2wav.weights import Weights
from training.speech_codes import NUM_CODES

FLOW = FlowConfig(
    vocab=NUM_CODES, speaker=192, width=128, encoder_heads=2, encoder_ffn=256, num_blocks=2, num_up_blocks=1,
    depth=3, heads=2, head_dim=64, hidden=128, mlp=384, cfg_rate=0.7,
)  # fmt: skip
VOCODER = {"conv_pre.weight": (112, MELS, 7), "f0_predictor.condnet.0.weight": (64, MELS, 3)}


class LiveWeights(Weights):
    """Parameters under their checkpoint names; what is taken is the parameter itself."""

    def __init__(self, params: Mapping[str, nn.Parameter]) -> None:
        some = next(iter(params.values()))
        super().__init__({}, "live parameters", some.device, some.dtype)
        self._params = params

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._params[name].shape)

    def take(self, name: str, *shape: int | None) -> torch.Tensor:
        return self._params[name]

    def finish(self) -> None:
        pass


def _parameters(taken: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(tensor.clone()) for name, tensor in taken.items()}


def flow_start(seed: int, device: torch.device, config: FlowConfig = FLOW) -> dict[str, nn.Parameter]:
    """Random weights; what a time step does begins small, and the mel at its mean."""
    weights = RandomWeights(seed=seed, keep=True, device=device)
    Encoder(weights, config)
    weights.take("spk_embed_affine_layer.weight", MELS, config.speaker)
    weights.take("spk_embed_affine_layer.bias", MELS)
    Estimator(weights, config, 1)
    taken = weights.taken
    for name, tensor in taken.items():
        if "adaLN" in name:
            tensor.mul_(0.3)
        elif name == "decoder.estimator.final_layer.linear.weight":
            tensor.mul_(0.1)
        elif name in ("encoder_proj.bias", "decoder.estimator.final_layer.linear.bias"):
            tensor.fill_(-6.0)
    return _parameters(taken)


def vocoder_start(seed: int, device: torch.device) -> dict[str, nn.Parameter]:
    weights = RandomWeights(VOCODER, seed=seed, keep=True, device=device)
    Hift(weights, torch.zeros(1, 9))
    weights.taken["f0_predictor.classifier.bias"].fill_(100.0)
    return _parameters(weights.taken)


class Seen:
    """Stands for a KeyView where everything is in one batch: which frame sees which, bool [B, 1, T, T]."""

    def __init__(self, pieces: torch.Tensor) -> None:
        """pieces [B, T]: the number of each frame's piece; a frame sees its own piece and those before."""
        self.length = pieces.shape[1]
        self.mask = (pieces[:, :, None] >= pieces[:, None, :])[:, None]

    def extend(self, part: int, layer: int, kv: torch.Tensor) -> torch.Tensor:
        return kv


class LiveEstimator(Estimator):
    """The engine's estimator at another time for each window."""

    def __init__(self, params: Mapping[str, nn.Parameter], config: FlowConfig, times: torch.Tensor) -> None:
        """times [B]. Nothing here comes from the host, so that a CUDA graph can hold it."""
        w, prefix, d = LiveWeights(params), "decoder.estimator.", config.hidden
        rates = torch.exp(torch.arange(128, device=times.device) * (-math.log(1e4) / 128))
        angles = times[:, None] * 1000.0 * rates
        x = torch.cat((angles.cos(), angles.sin()), -1)
        for layer in ("0", "2"):
            name = f"{prefix}t_embedder.mlp.{layer}"
            x = F.silu(F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"]))
        weight = params[f"{prefix}in_proj.weight"]
        self._in_x, self._in_given = weight[:, :MELS], weight[:, MELS:]
        self._in_bias = params[f"{prefix}in_proj.bias"]
        self._blocks = [_Block(w, f"{prefix}blocks.{i}.", config, x) for i in range(config.depth)]
        for block in self._blocks:
            block._steps = _by_window(block._steps)
        shift, scale = _by_window(_modulation(w, f"{prefix}final_layer.adaLN_modulation.1.", x, 2, d))[0]
        self._final_shift, self._final_scale = shift[None], scale[None]
        final = f"{prefix}final_layer.linear."
        self._out = params[f"{final}weight"], params[f"{final}bias"]


def _by_window(vectors: torch.Tensor) -> torch.Tensor:
    """[B, count, C] -> [1, count, B, 1, 1, C]: one time step, whose vectors differ by window."""
    return vectors.transpose(0, 1)[None, :, :, None, None]


class LivePast:
    """Of an estimator whose windows begin with nothing before them."""

    def __init__(self, keys: Seen) -> None:
        self.keys = keys
        self.columns, self.ends = [[None] * 64], None


def encode(
    params: Mapping[str, nn.Parameter], codes: torch.Tensor, pieces: torch.Tensor, last: bool, config: FlowConfig = FLOW
) -> torch.Tensor:
    """codes [B, n], or [B, n + 3] unless last; pieces [B, n], of the codes -> mu [B, 2n, 80]."""
    frames = pieces.repeat_interleave(2, 1)
    columns = torch.zeros(len(codes), CODE_PAST + FRAME_PAST, config.width, device=codes.device)
    past = EncoderPast(Seen(pieces), Seen(frames), columns)  # type: ignore[arg-type]
    return Encoder(LiveWeights(params), config)(codes, last, past)[0]


def speaker_row(params: Mapping[str, nn.Parameter], speaker: torch.Tensor) -> torch.Tensor:
    """[192] -> [1, 80]."""
    prefix = "spk_embed_affine_layer."
    return F.linear(F.normalize(speaker[None], dim=1), params[f"{prefix}weight"], params[f"{prefix}bias"])
