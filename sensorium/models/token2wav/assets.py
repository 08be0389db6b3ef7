"""The files of a codec folder, in either layout, and the parts they make.

1.0.5 and 1.0.6 of minicpmo-utils: hift.pt is the original vocoder; streams are cross-faded.
1.0.7: hift.pt is causal and for streams; hift_original.pt is for whole utterances; config.yaml describes the mel.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sensorium.errors import CheckpointError, ConfigError
from sensorium.models.token2wav.config import check_causal_config, read_flow_config
from sensorium.models.token2wav.flow import Flow
from sensorium.models.token2wav.hift import StreamingVocoder, kind_of, source_noise
from sensorium.models.token2wav.hift_causal import CausalVocoder
from sensorium.models.token2wav.hift_original import OriginalVocoder
from sensorium.models.token2wav.prompt import PromptMaker
from sensorium.models.token2wav.trimming import TRIMMINGS, Trimming
from sensorium.models.token2wav.weights import Weights, read_state_dict

FOLDER = Path("assets") / "token2wav"
"""Where a checkpoint has its codec."""
MAX_TIMESTEPS = 100


@dataclass(frozen=True, slots=True)
class Parts:
    flow: Flow
    whole: OriginalVocoder
    streaming: StreamingVocoder
    prompts: PromptMaker | None


def load_parts(
    folder: Path,
    n_timesteps: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    cloning: bool,
    trimming: Trimming,
    graphs: bool,
) -> Parts:
    """Raises CheckpointError for what is wrong in the folder, ConfigError for what is wrong in the settings."""
    if not 1 <= n_timesteps <= MAX_TIMESTEPS:
        raise ConfigError(f"n_timesteps must be between 1 and {MAX_TIMESTEPS}, not {n_timesteps}", param="n_timesteps")
    if trimming not in TRIMMINGS:
        raise ConfigError(f"trimming must be one of {', '.join(TRIMMINGS)}, not {trimming!r}", param="trimming")
    if not folder.is_dir():
        raise CheckpointError(f"there is no codec folder {folder}; a speaking checkpoint has one at {FOLDER}")
    config = read_flow_config(folder / "flow.yaml")
    hift = _vocoder_weights(folder, "hift.pt", device)
    causal = kind_of(hift) == "causal"
    if causal:
        check_causal_config(folder / "config.yaml")
        original = _vocoder_weights(folder, "hift_original.pt", device)
        if kind_of(original) == "causal":
            raise CheckpointError("hift_original.pt holds a causal vocoder; the original one has 7 taps in conv_pre")
        streaming: StreamingVocoder = CausalVocoder(hift, source_noise("causal"), dtype)
        whole = OriginalVocoder(original, source_noise("original"))
    else:
        whole = streaming = OriginalVocoder(hift, source_noise("original"))
    weights = Weights(read_state_dict(folder / "flow.pt"), "flow.pt", device, dtype)
    flow = Flow(weights, config, n_timesteps, silent_ahead=not causal, trimming=trimming, graphs=graphs)
    prompts = PromptMaker(folder, config.speaker, device) if cloning else None
    return Parts(flow, whole, streaming, prompts)


def _vocoder_weights(folder: Path, name: str, device: torch.device) -> Weights:
    tensors = read_state_dict(folder / name)
    return Weights({key.removeprefix("generator."): tensor for key, tensor in tensors.items()}, name, device)
