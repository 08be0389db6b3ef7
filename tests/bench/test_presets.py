"""Random checkpoints of known shapes."""

import pytest
import torch

from sensorium.bench import presets
from sensorium.cli import main
from sensorium.config import EngineConfig
from sensorium.models.minicpmo import Config, Model


def test_a_preset_is_a_checkpoint_that_answers_as_transformers_does(tmp_path, capsys):
    pytest.importorskip("transformers")
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 96}
    presets.write("qwen3-0.6b", tmp_path, vocab_size=1536, **small)
    words = ["--batch", "2", "--prompt-len", "8", "--num-tokens", "4", "--repeat", "1", "--max-model-len", "256"]
    assert main(["bench", str(tmp_path), *words, "--transformers", "--json"]) == 0
    assert '"equal_tokens": 1' in capsys.readouterr().out


def test_without_a_preset_the_model_stays():
    config = EngineConfig(model="somewhere")
    with presets.checkpoint(config, None) as same:
        assert same is config


def test_the_shapes_have_the_sizes_of_their_names():
    for name, billions in {"qwen3-0.6b": 0.6, "qwen3-1.7b": 1.72, "qwen3-8b": 8.19}.items():
        with torch.device("meta"):
            model = Model(Config.from_hf(presets.source(name)))
        count = sum(parameter.numel() for parameter in model.parameters())
        assert abs(count / 1e9 - billions) < 0.02 * billions
