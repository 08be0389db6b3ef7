"""Reading and writing checkpoints: names, shards, dtypes, what is refused and how."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_minicpm import VERSIONS, random_image, tiny_config, tiny_model

from sensorium.config import EngineConfig
from sensorium.errors import CheckpointError
from sensorium.models import build, loader, registry
from sensorium.models.minicpmo import Config, Model


def read(folder, config=None, dtype=torch.float32, **options):
    parsed = Config.from_hf(config or json.loads((folder / "config.json").read_text()))
    return loader.load(Model, parsed, folder, "cpu", dtype, **options)


@pytest.fixture
def folder(tmp_path):
    loader.save_checkpoint(tiny_model(), tmp_path)
    return tmp_path


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("version", VERSIONS, ids=str)
@pytest.mark.parametrize("shard_bytes", [5 << 30, 300_000])
def test_round_trip(tmp_path, version, shard_bytes):
    model = tiny_model(*version)
    loader.save_checkpoint(model, tmp_path, max_shard_bytes=shard_bytes)
    assert (tmp_path / loader.INDEX).exists() == (shard_bytes < 5 << 30)
    again = read(tmp_path)
    for (name, ours), theirs in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_names_and_shapes_are_the_published_ones(folder, golden):
    published = json.loads((golden / "minicpmo45/tiny/tensor_names.json").read_text())
    ours = set(load_file(folder / "model.safetensors"))
    # The same model with one vision layer more, and with the speech side, which is not read.
    theirs = {name for name in published if not name.startswith(("tts.", "vpm.encoder.layers.2."))}
    assert ours == theirs
    config = json.loads((golden / "minicpmo45/tiny/config.json").read_text())
    with torch.device("meta"):
        model = Model(Config.from_hf(config))
    shapes = {name: list(target.tensor.shape) for name, target in loader.targets(model).items()}
    assert shapes == {name: shape for name, (shape, _) in published.items() if not name.startswith("tts.")}


def test_weights_take_the_dtype_asked_for_and_tables_stay_float32(folder):
    model = read(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.decoder.rope.inv_freq.dtype == torch.float32
    assert model.encode("image", [random_image([(2, 3)])])[0].dtype == torch.bfloat16


def test_progress_counts_every_byte_once(folder):
    calls = []
    read(folder, progress=lambda done, total, name: calls.append((done, total, name)))
    tensors = load_file(folder / "model.safetensors")
    assert {name for _, _, name in calls} == set(tensors)
    assert calls[-1][0] == calls[-1][1] == sum(t.nbytes for t in tensors.values())


def test_problems_are_listed_by_name(folder):
    def change(tensors):
        del tensors["llm.model.norm.weight"]
        tensors["llm.extra"] = torch.zeros(1)
        tensors["resampler.query"] = torch.zeros(3, 128)

    edit(folder, change)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    for words in (
        "missing: llm.model.norm.weight",
        "unexpected: llm.extra",
        "resampler.query is [3, 128], should be [64, 128]",
    ):
        assert words in str(caught.value)


def test_long_lists_are_cut(folder):
    edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("vpm.")])
    with pytest.raises(CheckpointError, match=r"and \d+ more"):
        read(folder)


def test_speech_side_and_towers_left_out_are_not_read(folder):
    edit(folder, lambda tensors: tensors.update({"tts.emb_text.weight": torch.zeros(2)}))
    for vision, audio in ((True, False), (False, True), (False, False)):
        options = EngineConfig(init_vision=vision, init_audio=audio)
        config = json.loads((folder / "config.json").read_text())
        model = build.load_model(folder, config, options, torch.device("cpu"), torch.float32)
        assert (model.vision is not None, model.audio is not None) == (vision, audio)


def test_dropped_vision_layer_may_be_in_the_file(folder):
    model = read(folder, tiny_config(drop_vision_last_layer=True))
    assert len(model.vision.layers) == 1


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "no *.safetensors"),
        ({"pytorch_model.bin": b"x"}, "can run code"),
        ({"model.safetensors": b"not a header"}, "is the download complete"),
        ({loader.INDEX: b"{"}, "cannot be read"),
        ({loader.INDEX: b'{"weight_map": {"a": "part-1.safetensors"}}'}, "lacks part-1.safetensors"),
    ],
)
def test_folders_without_usable_weights(tmp_path, files, words):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        read(tmp_path, tiny_config())


def test_unknown_architecture_lists_the_known():
    with pytest.raises(CheckpointError, match="NewModel is not supported; supported: MiniCPMO"):
        registry.load_processor("", {"architectures": ["NewModel"]})


def test_random_weights_repeat_with_their_seed():
    one, same, other = (dict(loader.export_tensors(tiny_model(seed=seed))) for seed in (1, 1, 2))
    name = "llm.model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])
    assert one["llm.model.layers.0.self_attn.q_norm.weight"].eq(1).all()
    assert one["resampler.attn.in_proj_bias"].eq(0).all()
