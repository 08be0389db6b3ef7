"""From a checkpoint to the model of its family."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sensorium.config import EngineConfig
from sensorium.errors import CheckpointError, MediaError, UnsupportedError
from sensorium.kernels import select
from sensorium.media.wav import read_wav
from sensorium.models import loader
from sensorium.models.base import Codec, Model
from sensorium.models.registry import family_module, find_family
from sensorium.models.token2wav import Token2Wav, Voice, VoicePrompt
from sensorium.models.token2wav.prompt import SPEAKER_FILE, TOKENIZER_FILE

log = logging.getLogger(__name__)
_CODEC = Path("assets") / "token2wav"
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_REFERENCE = Path("assets") / "HT_ref_audio.wav"
"""The recording that the released checkpoint's examples speak in."""


def load_model(
    folder: Path,
    hf_config: Mapping[str, Any],
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    progress: loader.Progress | None = None,
) -> Model:
    """Build the family's model and read its weights. Raises CheckpointError with what to do."""
    select.prefer_any_shape(device)
    model_class, parsed = _parse(hf_config, config)
    if config.load_format == "dummy":
        model = loader.build(model_class, parsed, device, dtype)
        loader.init_random_(model, config.seed)
        return model
    return loader.load(model_class, parsed, folder, device, dtype, progress)


def outline(hf_config: Mapping[str, Any], config: EngineConfig) -> Model:
    """The model without memory behind its weights: for what it would need."""
    model_class, parsed = _parse(hf_config, config)
    with torch.device("meta"):
        return model_class(parsed)


def _parse(hf_config: Mapping[str, Any], config: EngineConfig) -> tuple[Any, Any]:
    """The family's Model class and its configuration."""
    config_module, model_module, _ = find_family(hf_config)
    parsed = family_module(config_module).Config.from_hf(
        hf_config,
        init_vision=config.init_vision and config.takes("image", "video"),
        init_audio=config.init_audio and config.takes("audio"),
        init_tts=config.init_tts,
    )
    return family_module(model_module).Model, parsed


def load_codec(folder: Path, config: EngineConfig, device: torch.device) -> tuple[Codec, dict[str, Any]] | None:
    """The codec that config asks for, and the voices that lie beside it, by name; None where there is no codec.

    Voices: voices/NAME.safetensors (saved VoicePrompts) and voices/NAME.wav of its folder; "default" is also the
    checkpoint's own recording. Raises CheckpointError, ConfigError.
    """
    place = _codec_folder(folder, config)
    if not config.init_tts or config.codec == "none":
        return None
    if config.codec == "auto" and not place.is_dir():
        log.warning("%s has no %s: speech ends in codes, without sound", folder.name, _CODEC)
        return None
    settings = dict(config.codec_config)
    options = {key: settings[key] for key in ("n_timesteps", "trimming", "graphs") if key in settings}
    options |= {"device": device, "dtype": _DTYPES[settings.get("dtype", "float32")]}
    cloning = any((place / name).is_file() for name in (TOKENIZER_FILE, SPEAKER_FILE))
    try:
        codec = Token2Wav.load(place, **options, cloning=cloning)
    except UnsupportedError as error:
        log.warning("no voices can be made of recordings: %s", error)
        codec = Token2Wav.load(place, **options, cloning=False)
    return codec, _voices(codec, voice_files(folder, config), voice_seconds(config))


def voice_seconds(config: EngineConfig) -> float:
    """How much of a recording counts as a voice: what memory is kept ready for."""
    return float(config.codec_config.get("voice_s", 10.0))


def voice_files(folder: Path, config: EngineConfig) -> dict[str, Path]:
    """Voice -> the file that it is made of, for the voices beside the codec and the checkpoint's own."""
    place, reference = _codec_folder(folder, config) / "voices", folder / _REFERENCE
    found = {path.stem: path for path in sorted(place.glob("*.wav"))}
    found |= {path.stem: path for path in sorted(place.glob("*.safetensors"))}
    return {"default": reference, **found} if reference.is_file() else found


def _codec_folder(folder: Path, config: EngineConfig) -> Path:
    return folder / _CODEC if config.codec == "auto" else Path(config.codec).expanduser()


def _voices(codec: Token2Wav, files: Mapping[str, Path], seconds: float) -> dict[str, Any]:
    voices: dict[str, Any] = {}
    for name, path in files.items():
        if path.suffix == ".safetensors":
            voices[name] = Voice(VoicePrompt.load(path))
        elif codec.can_clone:
            wav = read_wav(path.read_bytes())
            if wav is None:
                raise CheckpointError(f"{path} is not a WAV file that can be read")
            try:
                voices[name] = codec.voice(wav.read(0, int(seconds * wav.rate)), wav.rate)
            except MediaError as error:
                raise CheckpointError(f"{path} cannot be a voice: {error}") from error
        else:
            log.warning("the voice %s of %s needs the extra `speech`, which is not installed", name, path.name)
    return voices
