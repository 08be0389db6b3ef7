"""A very small checkpoint that speaks: the reference's, with a text table for its whole vocabulary, and a codec."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_codec import write_codec

from sensorium.models import loader
from sensorium.models.minicpm_speech import SpeechLM
from sensorium.models.minicpm_speech_config import SpeechConfig
from sensorium.models.minicpmo import Model


def made_up_speech(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a speech LM of that configuration, random."""
    whole: Any = torch.nn.Module()
    with torch.device("meta"):
        whole.speech = SpeechLM(SpeechConfig.from_hf(config))
    whole.renames, whole.ignored, whole.config = Model.renames, (), SimpleNamespace(source={})
    random = torch.Generator().manual_seed(1)
    made: dict[str, torch.Tensor] = {}
    for name, target in loader.targets(whole).items():
        is_gain = name.endswith(("norm.weight", "original0"))
        shape = target.tensor.shape
        made[name] = torch.ones(shape) if is_gain else torch.randn(shape, generator=random) * 0.1
    return made


def speaking_checkpoint(source: Path, folder: Path, context: int | None = None) -> Path:
    """source: the tiny MiniCPM-o 4.5 of the reference data; its speech LM is made up where only the core is here.
    context: tokens it may see, if not its own number."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in ("config.json", "model.safetensors", "tensor_names.json"):
            (folder / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    config["tts_config"]["num_text_tokens"] = config["vocab_size"]
    if context is not None:
        config["max_position_embeddings"] = context
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    if not any(name.startswith("tts.") for name in tensors):
        tensors |= made_up_speech(config["tts_config"])
    shape = (config["vocab_size"], config["tts_config"]["hidden_size"])
    tensors["tts.emb_text.weight"] = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    save_file(tensors, folder / "model.safetensors")
    write_codec(folder / "assets" / "token2wav")
    return folder
