"""What a checkpoint is made of, from its headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sensorium.cli import main
from sensorium.errors import CheckpointError
from sensorium.inspect import inspect
from sensorium.inspect.headers import stored_tensors
from sensorium.inspect.modules import as_modules
from sensorium.models.loader import INDEX


@pytest.fixture(scope="module")
def tiny(golden_core: Path) -> Path:
    return golden_core / "minicpmo45" / "tiny"


def test_names_shapes_and_sizes_are_those_of_the_tensors(tiny):
    found, real = stored_tensors(tiny), load_file(tiny / "model.safetensors")
    assert {name: one.shape for name, one in found.items()} == {name: tuple(t.shape) for name, t in real.items()}
    report = inspect(tiny)
    assert sum(part.bytes for part in report.parts) == sum(tensor.nbytes for tensor in real.values())
    assert sum(part.parameters for part in report.parts) == sum(tensor.numel() for tensor in real.values())
    assert [part.name for part in report.parts][:5] == ["llm", "vpm", "resampler", "apm", "audio_projection_layer"]
    assert {part.dtypes for part in report.parts} == {("F32",)}


def test_the_language_model_has_the_modules_of_transformers(tiny):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    source = json.loads((tiny / "config.json").read_text())
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    config = Qwen3Config(**{name: source[name] for name in (*names, "intermediate_size", "vocab_size")})
    with torch.device("meta"):
        reference = Qwen3ForCausalLM(config)
    ours = as_modules(inspect(tiny).root).get_submodule("llm")
    assert [name for name, _ in ours.named_modules()] == [name for name, _ in reference.named_modules()]
    for (name, module), (_, other) in zip(ours.named_modules(), reference.named_modules(), strict=True):
        # transformers 4.51, whose names these are, has torch's SiLU; later ones wrap it.
        assert type(module).__name__ == type(other).__name__.removesuffix("Activation"), name
    assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in reference.named_parameters()}


def test_the_tree(tiny):
    tree = inspect(tiny).tree
    assert tree["vpm"]["embeddings"]["patch_embedding"] == {
        "_type": "Conv2d", "_shape": [64, 3, 14, 14], "_has_bias": True,
    }  # fmt: skip
    assert tree["apm"]["layers"]["1"]["self_attn"]["k_proj"] == {"_type": "Linear", "_shape": [64, 64]}
    assert tree["audio_avg_pooler"] == {"_type": "AvgPool1d"}


def test_the_speech_side(golden):
    tree = inspect(golden / "minicpmo45" / "tiny").tree
    assert tree["tts"]["head_code"]["0"]["_shape"] == [33, 48]
    assert tree["tts"]["head_code"]["0"]["parametrizations"]["weight"]["0"] == {"_type": "_WeightNorm"}


def test_other_versions_and_families(golden):
    vision = inspect(golden / "minicpmo45" / "v26" / "tiny")
    assert vision.root.type == "MiniCPMV"
    assert vision.tree["llm"]["model"]["layers"]["0"]["_type"] == "Qwen2DecoderLayer"
    assert "audio_avg_pooler" not in vision.tree
    other = inspect(golden / "models" / "qwen2_vl")
    assert other.tree["model"]["embed_tokens"]["_type"] == "Embedding"
    assert other.tree["visual"]["patch_embed"]["proj"]["_type"] == "Conv3d"
    assert other.kv_bytes_per_token == 256


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "minicpmv", "version": 4.5, **config}))
    return folder


def test_tied_heads_quantised_layers_and_assets(tmp_path):
    tensors = {
        "llm.model.embed_tokens.weight": torch.zeros(8, 4, dtype=torch.bfloat16),
        "llm.model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 2, dtype=torch.int32),
        "llm.model.layers.0.mlp.up_proj.scales": torch.zeros(1, 8, dtype=torch.float16),
        "resampler.query": torch.zeros(2, 4),
        "extra.3.weight": torch.zeros(5),
    }
    folder = checkpoint(tmp_path / "model", tensors, architectures=["MiniCPMV"], tie_word_embeddings=True)
    (folder / "assets" / "token2wav").mkdir(parents=True)
    (folder / "assets" / "token2wav" / "flow.pt").write_bytes(b"12345")
    report = inspect(folder)
    assert report.tree["llm"]["lm_head"] == {"_type": "Linear", "_shape": [8, 4]}
    assert report.tree["extra"] == {"_type": "ModuleList", "3": {"_type": "RMSNorm", "_shape": [5]}}
    assert report.tree["resampler"] == {"_type": "Resampler", "kv_proj": {"_type": "Identity"}}
    assert {part.name: part.bytes for part in report.parts} == {
        "llm": 64 + 32 + 16, "resampler": 32, "extra": 20, "assets": 5,
    }  # fmt: skip
    modules = as_modules(report.root)
    assert len(list(modules.get_submodule("llm").named_parameters())) == 3
    assert modules.get_submodule("llm.lm_head").weight is modules.get_submodule("llm.model.embed_tokens").weight
    with pytest.raises(RuntimeError, match="no weights"):
        modules(1)


def test_as_text_and_json(tiny, tmp_path, capsys):
    assert main(["inspect", str(tiny), "--depth", "2"]) == 0
    text = capsys.readouterr().out
    assert "llm                     Qwen3ForCausalLM              874.88 k   3.50 MB  F32" in text
    assert "  lm_head: Linear [362, 256]\n" in text
    assert "    ...\n" in text
    assert main(["inspect", str(tiny)]) == 0
    assert "      0-2: SiglipEncoderLayer\n" in capsys.readouterr().out
    assert main(["inspect", str(tiny), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["tree"] == inspect(tiny).tree
    assert main(["inspect", str(tiny), "--output", str(tmp_path / "report.json")]) == 0
    assert json.loads((tmp_path / "report.json").read_text()) == printed
    assert printed["bytes"] == sum(part["bytes"] for part in printed["parts"])


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: folder.rename(folder.parent / "moved"), "no model folder at .*hf download"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "no JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "download the weights too"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), "pickled"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"123"), "no safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60)), "header would be"),
        (lambda folder: (folder / "model.safetensors").write_bytes(_header({"x": 3})), "no safetensors file"),
        (lambda folder: (folder / "model.safetensors").write_bytes(_header({})), "hold no tensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(_header(_LYING)), "8 bytes for a F32 tensor"),
        (lambda folder: _shorten(folder / "model.safetensors"), "is the download complete"),
        (lambda folder: (folder / INDEX).write_text('{"weight_map": {"a": "lost.safetensors"}}'), "lacks lost.saf"),
        (lambda folder: (folder / INDEX).write_text("[]"), "index.json cannot be read"),
    ],
)
def test_damaged_checkpoints(tmp_path, prepare, words, capsys):
    folder = checkpoint(tmp_path / "model", {"a.weight": torch.zeros(4, 4)})
    prepare(folder)
    with pytest.raises(CheckpointError, match=words):
        inspect(folder)
    assert main(["inspect", str(folder)]) == 1
    assert "sensorium: " in capsys.readouterr().err


_LYING = {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}


def _header(entries: dict) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])
