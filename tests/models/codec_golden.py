"""The reference's codec cases: their tensors, and codecs made of its tiny weights with its noise."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import load_file

from sensorium.models.token2wav.assets import Parts
from sensorium.models.token2wav.config import read_flow_config
from sensorium.models.token2wav.flow import Flow
from sensorium.models.token2wav.hift_causal import CausalVocoder
from sensorium.models.token2wav.hift_original import OVERLAP, OriginalVocoder
from sensorium.models.token2wav.prompt import VoicePrompt
from sensorium.models.token2wav.token2wav import Token2Wav
from sensorium.models.token2wav.trimming import Trimming
from sensorium.models.token2wav.weights import Weights, read_state_dict
from tests.golden_speech import place_of

MEL, WAVE = 1e-4, 3e-4


def tensors(case: str) -> dict[str, torch.Tensor]:
    return load_file(place_of(f"cases/{case}/tensors.safetensors"))


def facts(case: str) -> dict[str, Any]:
    return json.loads(place_of(f"cases/{case}/case.json").read_text("utf-8"))


def weights(name: str, device: str = "cpu") -> Weights:
    return Weights(read_state_dict(place_of(f"assets/{name}")), name, device)


def flow(
    t: dict[str, torch.Tensor],
    n_timesteps: int,
    silent_ahead: bool,
    trimming: Trimming = "reference",
    device: str = "cpu",
) -> Flow:
    config = read_flow_config(place_of("assets/token2wav/flow.yaml"))
    noise = t["flow_noise"].T
    return Flow(weights("token2wav/flow.pt", device), config, n_timesteps, noise, silent_ahead, trimming)


def prompt(t: dict[str, torch.Tensor]) -> VoicePrompt:
    return VoicePrompt(t["prompt_token"][0].long(), t["spk_emb"][0], t["prompt_mel"])


def original(noise: torch.Tensor, device: str = "cpu") -> OriginalVocoder:
    return OriginalVocoder(weights("token2wav/hift.pt", device), noise)


def causal(device: str = "cpu") -> CausalVocoder:
    noise = tensors("token2wav_stream_causal")["sine_noise_table_u8"][0].float() / 256
    return CausalVocoder(weights("token2wav_causal/hift.pt", device), noise)


def fade_noise(t: dict[str, torch.Tensor], pieces: int) -> torch.Tensor:
    """[N, 9]: the noise of each call behind what the call before it had computed already."""
    parts = [t[f"source_noise_i8_{i}"][0, OVERLAP if i else 0 :] for i in range(pieces)]
    return torch.cat(parts).float() / 32


def streaming_codec(kind: str, device: str = "cpu") -> Token2Wav:
    case = f"token2wav_stream_{kind}"
    t, n_timesteps = tensors(case), facts(case)["n_timesteps"]
    whole = original(torch.zeros(1, 9), device)
    if kind == "causal":
        return Token2Wav(Parts(flow(t, n_timesteps, False, "reference", device), whole, causal(device), None))
    crossfade = original(fade_noise(t, len(facts(case)["chunks"])), device)
    return Token2Wav(Parts(flow(t, n_timesteps, True, "packed", device), whole, crossfade, None))
