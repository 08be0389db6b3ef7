"""Puts what duplex_run learned into a checkpoint folder: `python -m training.duplex_package RUN FOLDER`.

Pictures and voice stay as they are there; training.speech_package puts in a voice that was trained further.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from sensorium.models.loader import load, save_checkpoint
from sensorium.models.minicpmo import Config, Model
from training.run import PACKAGE


def put(run: Path, folder: Path) -> None:
    """folder: a checkpoint with a speech LM; its config.json and model.safetensors are written anew."""
    config = Config.from_hf(json.loads((folder / "config.json").read_text("utf-8")), init_tts=True)
    model = load(Model, config, folder, torch.device("cpu"), torch.bfloat16)
    state = model.state_dict()
    for file in sorted(run.glob("backbone-*.pt")):
        for name, tensor in torch.load(file, map_location="cpu").items():
            assert state[name].shape == tensor.shape
            state[name] = tensor
    if (run / "speech.pt").is_file():
        speech = torch.load(run / "speech.pt", map_location="cpu")
        state |= {f"speech.{name}": tensor for name, tensor in speech.items()}
    model.load_state_dict(state)
    save_checkpoint(model, folder)


if __name__ == "__main__":
    put(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else PACKAGE)
