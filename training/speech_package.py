"""Puts what speech_run learned into a checkpoint folder: `python -m training.speech_package RUN FOLDER`.

Writes tts.* beside the other tensors, assets/token2wav with flow and vocoder, and the voice as a saved prompt.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import tokenizers
import torch

from sensorium.bench.codec import flow_yaml
from sensorium.models.loader import build, load, save_checkpoint
from sensorium.models.minicpmo import Config, Model
from sensorium.models.token2wav import VoicePrompt
from sensorium.models.token2wav.features import prompt_mel
from training.espeak import Espeak
from training.package import model_config
from training.run import PACKAGE
from training.speech_codes import CodeBook
from training.speech_items import Speaker
from training.speech_live import FLOW

GREETING = "Hello! I can see simple pictures and hear short sentences."
"""What the voice prompt says."""


def add_speech_lm(run: Path, folder: Path) -> None:
    """folder: a checkpoint with or without a speech LM; its config.json and model.safetensors are written anew."""
    ids = json.loads((folder / "added_tokens.json").read_text("utf-8"))
    saved = json.loads((folder / "config.json").read_text("utf-8"))
    cpu, kind = torch.device("cpu"), torch.bfloat16
    backbone = load(Model, Config.from_hf(saved), folder, cpu, kind)
    config = Config.from_hf(model_config(saved["vocab_size"], ids), init_tts=True)
    model = build(Model, config, cpu, kind)
    missing, unexpected = model.load_state_dict(backbone.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("speech.") for name in missing)
    assert model.speech is not None
    model.speech.load_state_dict(torch.load(run / "speech.pt", map_location=cpu))
    save_checkpoint(model, folder)


def write_codec(run: Path, folder: Path, espeak: Path | None = None) -> None:
    """assets/token2wav in the layout of minicpmo-utils 1.0.5, in half precision, without the two ONNX files."""
    place = folder / "assets" / "token2wav"
    (place / "voices").mkdir(parents=True, exist_ok=True)
    (place / "flow.yaml").write_text(flow_yaml(FLOW), "utf-8")
    flow = torch.load(run / "flow.pt", map_location="cpu")
    torch.save({name: tensor.half() for name, tensor in flow.items()}, place / "flow.pt")
    vocoder = torch.load(run / "vocoder.pt", map_location="cpu")
    torch.save({name: tensor.half() for name, tensor in _weight_normed(vocoder).items()}, place / "hift.pt")
    voice_prompt(run, folder, espeak).save(place / "voices" / "default.safetensors")


def _weight_normed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convolutions but those of the source as length and direction, as released files have them."""
    out = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 3 or name.startswith("source_downs"):
            out[name] = tensor
            continue
        stem = name.removesuffix("weight") + "parametrizations.weight.original"
        out[stem + "0"] = torch.linalg.vector_norm(tensor, dim=(1, 2), keepdim=True)
        out[stem + "1"] = tensor
    return out


@torch.inference_mode()
def voice_prompt(run: Path, folder: Path, espeak: Path | None = None) -> VoicePrompt:
    book = CodeBook()
    book.load_state_dict(torch.load(run / "book.pt", map_location="cpu"))
    speaker = Speaker(Espeak(espeak), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
    mel = prompt_mel(torch.from_numpy(speaker.say(GREETING).samples).float() / 32768)
    vector = torch.randn(FLOW.speaker, generator=torch.Generator().manual_seed(0))
    return VoicePrompt(book(mel[None])[0], vector, mel.contiguous())


if __name__ == "__main__":
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else PACKAGE
    add_speech_lm(Path(sys.argv[1]), target)
    write_codec(Path(sys.argv[1]), target)
