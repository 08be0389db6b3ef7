"""The reference's tiny speech LM and its recorded calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sensorium.engine import speech_sampler
from sensorium.engine.speech import SpeechStage
from sensorium.models import loader
from sensorium.models.base import SpeechModel
from sensorium.models.minicpm_config import Config
from sensorium.models.minicpm_speech import SpeechLM
from sensorium.models.minicpm_speech_config import SpeechConfig
from sensorium.models.minicpmo import Model
from tests.golden_speech import CORE, place_of


def load_speech(**changes: Any) -> SpeechModel:
    """The speech LM of the reference's checkpoint, with some fields of its tts_config replaced."""
    folder = place_of("model.safetensors").parent
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["tts_config"] |= changes
    parsed = Config.from_hf(config, init_vision=False, init_audio=False, init_tts=True)
    model = loader.load(Model, parsed, folder, "cpu", torch.float32)
    assert model.speech is not None
    return model.speech


def load_conditions() -> SpeechLM:
    """What makes its condition rows, alone: the rows of the table that the stored case reads, and the projector."""
    config = json.loads((CORE / "config.json").read_text("utf-8"))["tts_config"]
    made = SpeechLM(SpeechConfig.from_hf(config))
    stored = load_file(CORE / "condition.safetensors")
    with torch.no_grad():
        made.text.weight[stored["ids"]] = stored["emb_text"]
        for name, target in made.projector.named_parameters():
            target.copy_(stored[f"tts.projector_semantic.{name}"])
    return made


def read_case(name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    case, stored = place_of(f"cases/{name}/case.json"), place_of(f"cases/{name}/tensors.safetensors")
    return json.loads(case.read_text("utf-8")), load_file(stored)


class Watch:
    """Collects logits and probabilities of every pick, and lets the picks be as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: list[torch.Tensor] = []
        self.probs: list[torch.Tensor] = []
        compute = speech_sampler.probabilities

        def probabilities(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
            self.logits.append(logits.clone())
            self.probs.append(compute(logits, *rest))
            return self.probs[-1]

        monkeypatch.setattr(speech_sampler, "probabilities", probabilities)

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the first row, over the picks since the last time: [steps, V] each."""
        logits, probs = torch.stack(self.logits)[:, 0], torch.stack(self.probs)[:, 0]
        self.logits, self.probs = [], []
        return logits, probs


def on_device_rounds(stage: SpeechStage) -> SpeechStage:
    """The same stage with rounds as a GPU makes them, unrecorded."""
    stage._steps = stage.make_steps()
    return stage
