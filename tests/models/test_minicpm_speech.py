"""The speech LM's checkpoint: configuration, names, the fused head, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from sensorium.config import EngineConfig
from sensorium.engine.loading import load
from sensorium.engine.speech import SpeechStage
from sensorium.engine.speech_rules import SpeechWork
from sensorium.errors import CheckpointError
from sensorium.models import loader
from sensorium.models.minicpm_config import Config
from sensorium.models.minicpm_speech import SpeechLM
from sensorium.models.minicpm_speech_config import SpeechConfig
from sensorium.models.minicpmo import Model

RELEASED = {
    "llm_dim": 4096, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 20, "num_attention_heads": 12,
    "num_key_value_heads": 12, "max_position_embeddings": 4096, "num_audio_tokens": 6562, "num_text_tokens": 152064,
    "audio_bos_token_id": 151687, "text_eos_token_id": 151692, "num_vq": 1, "projector_type": "mlp",
    "condition_type": "hidden_text_merge", "normalize_projected_hidden": True, "interleaved": False,
    "attention_type": "full_attention", "recomputed_chunks": 1, "window_size": 2,
    "streaming_sliding_window_audio_window_size": 300, "audio_tokenizer_type": "s3tokenizer", "top_p": 0.85,
    "top_k": 25, "repetition_penalty": 1.05, "temperature": 0.8, "backbone_model": "llama",
}  # fmt: skip


def test_the_released_sizes_and_names():
    config = SpeechConfig.from_hf(RELEASED)
    assert (config.eos_code, config.token_window, config.decoder.head_dim) == (6561, 300, 64)
    assert (config.top_p, config.top_k, config.temperature, config.repetition_penalty) == (0.85, 25, 0.8, 1.05)
    with torch.device("meta"):
        model = SpeechLM(config)
    names = {name: tuple(target.tensor.shape) for name, target in loader.targets(_whole(model)).items()}
    expected = {
        "tts.emb_text.weight": (152064, 768),
        "tts.emb_code.0.weight": (6562, 768),
        "tts.head_code.0.parametrizations.weight.original0": (6562, 1),
        "tts.head_code.0.parametrizations.weight.original1": (6562, 768),
        "tts.projector_semantic.linear1.weight": (768, 4096),
        "tts.projector_semantic.linear1.bias": (768,),
        "tts.projector_semantic.linear2.weight": (768, 768),
        "tts.projector_semantic.linear2.bias": (768,),
        "tts.model.norm.weight": (768,),
    }
    for i in range(20):
        layer = f"tts.model.layers.{i}"
        expected |= {f"{layer}.self_attn.{piece}_proj.weight": (768, 768) for piece in "qkvo"}
        expected |= {f"{layer}.mlp.{piece}_proj.weight": (3072, 768) for piece in ("gate", "up")}
        expected |= {f"{layer}.{norm}_layernorm.weight": (768,) for norm in ("input", "post_attention")}
        expected[f"{layer}.mlp.down_proj.weight"] = (768, 3072)
    assert names == expected
    # 20 layers x keys and values x 768 numbers of 2 bytes a row.
    assert SpeechStage.slot_bytes(model, torch.bfloat16) == 4096 * 60 * 1024


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_vq": 4}, "num_vq"),
        ({"projector_type": "conv"}, "projector_type"),
        ({"condition_type": "llm_hidden"}, "condition_type"),
        ({"audio_tokenizer_type": "wavtokenizer"}, "audio_tokenizer_type"),
        ({"attention_type": "chunked"}, "attention_type"),
        ({"interleaved": True}, "interleaved"),
        ({"backbone_model": "mamba"}, "backbone_model"),
        ({"rope_theta": 5e5}, "rope_theta"),
        ({"hidden_size": "768"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"audio_bos_token_id": 152064}, "audio_bos_token_id"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes, named):
    with pytest.raises(CheckpointError, match=named):
        SpeechConfig.from_hf(RELEASED | changes)


def test_fields_left_out_have_the_defaults_of_the_reference():
    config = SpeechConfig.from_hf({"condition_type": "hidden_text_merge", "audio_tokenizer_type": "s3tokenizer"})
    assert (config.llm_dim, config.eos_code, config.num_text_tokens) == (2560, 4096, 21178)
    assert (config.audio_bos_id, config.text_eos_id, config.attention_type) == (21132, 21133, "sliding_recompute")
    assert not config.normalize_projected


SIZES = {
    "llm_dim": 12, "llm_intermediate_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "num_audio_tokens": 30, "num_text_tokens": 40,
    "audio_bos_token_id": 38, "text_eos_token_id": 39, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["mlp", "minicpm", "default"])
@pytest.mark.parametrize("normalised", [True, False])
@torch.inference_mode()
def test_projectors_and_head_from_their_checkpoint_names(tmp_path, kind, normalised):
    """A file with every released name in it, filled at random; condition and logits computed from the file by hand."""
    config = SpeechConfig.from_hf(RELEASED | SIZES | {"projector_type": kind, "normalize_projected_hidden": normalised})
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        wanted = {name: target.tensor.shape for name, target in loader.targets(_whole(SpeechLM(config))).items()}
    file = {name: torch.randn(shape, generator=generator) for name, shape in wanted.items()}
    save_file(file | {"tts.projector_spk.x": torch.zeros(1), "tts.model.embed_tokens.weight": torch.zeros(2)},
              tmp_path / "model.safetensors")  # fmt: skip
    model = loader.load(lambda c: _whole(SpeechLM(c)), config, tmp_path, "cpu", torch.float32).speech

    ids, hidden = torch.tensor([3, 0, 39]), torch.randn(3, 12, generator=generator)
    p = {name.removeprefix("tts.projector_semantic."): tensor for name, tensor in file.items()}
    if kind == "mlp":
        out = (
            F.linear(F.linear(hidden, p["linear1.weight"], p["linear1.bias"]).relu(), p["linear2.weight"])
            + p["linear2.bias"]
        )
    elif kind == "minicpm":
        gate = F.silu(F.linear(hidden, p["gate_proj.weight"], p["gate_proj.bias"]))
        out = F.linear(
            gate * F.linear(hidden, p["up_proj.weight"], p["up_proj.bias"]), p["down_proj.weight"], p["down_proj.bias"]
        )
    else:
        out = F.linear(hidden, p["weight"])
    out = out / out.norm(dim=1, keepdim=True) if normalised else out
    torch.testing.assert_close(model.condition(ids, hidden), file["tts.emb_text.weight"][ids] + out)

    x = torch.randn(2, 16, generator=generator)
    gain, v = (file[f"tts.head_code.0.parametrizations.weight.original{i}"] for i in (0, 1))
    torch.testing.assert_close(model.logits(x), x @ (gain * v / v.norm(dim=1, keepdim=True)).T)


def test_a_saved_model_loads_as_the_same(golden: Path, tmp_path: Path):
    folder = golden / "minicpmo45-speech"
    hf_config = json.loads((folder / "config.json").read_text())
    config = Config.from_hf(hf_config, init_vision=False, init_audio=False, init_tts=True)
    model = loader.load(Model, config, folder, "cpu", torch.float32)
    loader.save_checkpoint(model, tmp_path)
    again = loader.load(Model, config, tmp_path, "cpu", torch.float32)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    stored, released = load_file(tmp_path / "model.safetensors"), load_file(folder / "model.safetensors")
    assert {name for name in released if name not in stored} == {
        name for name in released if name.startswith(("tts.projector_spk.", "tts.model.embed_tokens."))
    }


def test_an_engine_with_speech_has_slots_and_counts_them(golden: Path):
    folder = str(golden / "minicpmo45" / "tiny")
    silent, speaking = (load(EngineConfig(model=folder, init_tts=on, speech_slots=3)) for on in (False, True))
    assert silent.engine.speech is None
    assert silent.plan.speech == 0
    stage = speaking.engine.speech
    assert stage is not None
    assert stage.num_free == 3
    # 1 layer x keys and values x 48 numbers of 4 bytes, 256 rows a slot.
    assert speaking.plan.speech == 3 * 256 * 2 * 48 * 4
    assert speaking.plan.weights > silent.plan.weights
    slot = stage.open("duplex")
    assert len(stage.speak([SpeechWork(slot, [5, 6], torch.zeros(2, 256), last=False, min_new=26)])[0]) == 25


def test_speech_is_refused_where_there_is_none(golden: Path):
    config = json.loads((golden / "minicpmo45" / "tiny" / "config.json").read_text())
    for changes, named in (
        ({"tts_config": None}, "no speech decoder"),
        ({"init_tts": False}, "no speech decoder"),
        ({"tts_config": config["tts_config"] | {"llm_dim": 64}}, "llm_dim"),
        ({"tts_config": config["tts_config"] | {"num_vq": 4}}, "num_vq"),
    ):
        with pytest.raises(CheckpointError, match=named):
            Config.from_hf(config | changes, init_tts=True)
        assert Config.from_hf(config | changes).speech is None


def _whole(speech: SpeechLM) -> Model:
    """The speech LM at its place in a model that has nothing else."""
    whole = torch.nn.Module()
    whole.speech = speech
    whole.renames, whole.ignored = Model.renames, ("tts.projector_spk.", "tts.model.embed_tokens.")
    whole.config = SimpleNamespace(source={})  # type: ignore[assignment]
    return whole  # type: ignore[return-value]
