"""The MiniCPM family on tiny random models: configuration, batching, gradients."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tiny_minicpm import VERSIONS, random_image, random_sound, tiny_config, tiny_model

from sensorium.errors import CheckpointError, UnsupportedError
from sensorium.kernels.reference import PackedPlan, PagedPlan
from sensorium.models.minicpm_sound import Sound, recording
from sensorium.models.minicpmo import Config, Model
from sensorium.models.parts.siglip import patch_inputs
from sensorium.types import MediaItem, ModelInputs


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


# ---- configuration ------------------------------------------------------------------------------------------------


def test_versions_differ_as_released():
    configs = {version: Config.from_hf(tiny_config(*version)) for version in VERSIONS}
    llm = {version: (c.decoder.qk_norm, c.decoder.qkv_bias) for version, c in configs.items()}
    assert llm["minicpmo", "4.5"] == llm["minicpmv", 4.5] == (True, False)
    assert llm["minicpmo", "2.6"] == llm["minicpmv", 2.6] == (False, True)
    assert llm["minicpmv", 4.0] == (False, False)
    assert configs["minicpmo", "4.5"].audio_pool_step == 5
    assert configs["minicpmo", "2.6"].audio_pool_step == 2
    assert configs["minicpmv", 4.5].audio is None
    assert configs["minicpmo", "4.5"].max_slice_nums == 1
    old = {key: value for key, value in tiny_config("minicpmo").items() if key != "version"}
    assert Config.from_hf(old).version == (2, 6)


def test_version_2_5_has_a_llama_decoder_and_96_queries_per_slice():
    config = {key: value for key, value in tiny_config("minicpmv").items() if key != "version"}
    parsed = Config.from_hf(config)
    assert (parsed.version, parsed.query_num, parsed.strip_positions) == ((2, 5), 96, True)
    model = tiny_model("minicpmv", "2.5")
    sizes = torch.tensor([[3, 4], [2, 2]])
    rows = model.embed_slices(torch.rand(2, 12, 588), sizes)
    assert rows.shape == (2, 96, 128)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "3.1"}, "version 3.1 is not supported"),
        ({"model_type": "minicpmv", "version": 2.0}, "version 2.0 is not supported"),
        ({"version": "new"}, "not a number"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised \\(awq\\)"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "spiral"),
        ({"audio_config": {}}, "audio_config has no 'd_model'"),
    ],
)
def test_unsupported_configurations_are_refused_with_the_reason(changes, words):
    with pytest.raises(CheckpointError, match=words):
        Model(Config.from_hf(tiny_config(**changes)))


def test_missing_field_is_named():
    config = tiny_config()
    del config["hidden_size"]
    with pytest.raises(CheckpointError, match="hidden_size"):
        Config.from_hf(config)


def test_towers_can_be_left_out():
    config = Config.from_hf(tiny_config(), init_vision=False, init_audio=False)
    model = Model(config)
    assert {"vpm.", "resampler.", "apm.", "audio_projection_layer.", "tts."} == set(model.ignored)
    for modality, item in (("image", random_image([(2, 2)])), ("audio", random_sound([20], 2))):
        with pytest.raises(UnsupportedError, match=f"init_{'vision' if modality == 'image' else 'audio'}"):
            model.encode(modality, [item])
    with pytest.raises(UnsupportedError, match="smell"):
        model.encode("smell", [])


# ---- encoders -----------------------------------------------------------------------------------------------------


def test_rows_of_an_image_do_not_depend_on_the_batch(model):
    items = [
        random_image([(3, 5)], seed=1),
        random_image([(2, 80), (7, 4), (4, 4)], seed=2),
        random_image([(1, 1)], seed=3),
    ]
    for item, together in zip(items, model.encode("image", items), strict=True):
        assert together.shape == (item.rows, 128)
        torch.testing.assert_close(model.encode("image", [item])[0], together, rtol=1e-4, atol=1e-4)


def test_packed_frames_stay_in_order_in_a_mixed_batch(model):
    groups = [[0, 3, 9], [12], [15, 20, 21, 30, 31, 40]]
    video = random_image([(2, 3)] * 10, groups, seed=1)
    image = random_image([(4, 4), (2, 3)], seed=2)
    alone = model.encode("video", [video])[0]
    assert alone.shape == (3 * 64, 128)
    together, _ = model.encode("image", [video, image])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    shifted = random_image([(2, 3)] * 10, [[5, 6, 7], [12], [15, 20, 21, 30, 31, 40]], seed=1)
    changed = (model.encode("image", [shifted])[0] - alone).abs().amax(1).view(3, 64).amax(1)
    assert changed[0] > 1e-2
    assert changed[1:].max() < 1e-4


def test_rows_of_a_sound_do_not_depend_on_the_batch(model):
    items = [random_sound([33], 3, seed=1), random_sound([3000, 130], 306, seed=2), random_sound([151], 15, seed=3)]
    for item, together in zip(items, model.encode("audio", items), strict=True):
        assert together.shape == (item.rows, 128)
        torch.testing.assert_close(model.encode("audio", [item])[0], together, rtol=1e-4, atol=1e-4)


# ---- decoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_three_sequences_in_one_step_equal_three_alone(version):
    model = tiny_model(*version)
    lengths, block_size = (5, 16, 9), 4
    prompts = [torch.randint(0, 50, (n,), generator=torch.Generator().manual_seed(n)) for n in lengths]
    alone = [model(model.embed(ids), ModelInputs(torch.arange(len(ids)), PackedPlan(1))) for ids in prompts]
    kv = [torch.zeros(2, 16, block_size, 2, 16) for _ in range(2)]
    tables = [[3, 7], [0, 1, 2, 9], [4, 5, 6]]
    done = [0, 0, 0]
    seen: list[list[torch.Tensor]] = [[], [], []]
    # A prefill chunk beside decodes, then the other way round.
    for counts in ([1, 7, 3], [1, 1, 5], [3, 8, 1]):
        stops = [start + count for start, count in zip(done, counts, strict=True)]
        ids = torch.cat([p[a:b] for p, a, b in zip(prompts, done, stops, strict=True)])
        positions = torch.cat([torch.arange(a, b) for a, b in zip(done, stops, strict=True)])
        plan = PagedPlan(counts, stops, tables, block_size, ids.device)
        hidden = model(model.embed(ids), ModelInputs(positions, plan, kv))
        for rows, part in zip(seen, hidden.split(counts), strict=True):
            rows.append(part)
        done = stops
    for rows, expected in zip(seen, alone, strict=True):
        torch.testing.assert_close(torch.cat(rows), expected, rtol=1e-4, atol=1e-4)


def test_tied_head_reads_the_embedding():
    model = tiny_model(tie_word_embeddings=True)
    hidden = torch.randn(3, 128)
    torch.testing.assert_close(model.logits(hidden), hidden @ model.decoder.embedding.weight.T)


def test_encoder_batches_of_many_requests_come_in_few_sizes():
    """Each size is a graph of its own on a GPU, and one that a little more would fill is filled up."""
    model, seen = tiny_model(vision_batch_size=16), []

    def wrap(encode, is_pure):
        def watched(x, *rest):
            seen.append(len(x))
            return encode(x, *rest)

        return watched

    model.wrap_encoders(wrap)
    for count in (1, 3, 7, 13, 22):
        items = [random_image([(2, 3)], seed=seed) for seed in range(count)]
        alone = [model.encode("image", [item])[0] for item in items]
        seen.clear()
        together = model.encode("image", items)
        assert seen == {1: [1], 3: [4], 7: [8], 13: [12, 1], 22: [16, 6]}[count]
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    seen.clear()
    model.encode("image", [random_image([(2, 3)] * 7)])
    assert seen == [7]


def test_features_of_sounds_may_be_left_to_the_device():
    model = tiny_model("minicpmo", "4.5")
    model.wrap_encoders(lambda encode, is_pure: encode)
    rng = np.random.default_rng(0)
    sounds = [
        [Sound(rng.standard_normal(length).astype(np.float32), bytes([length % 251])) for length in lengths]
        for lengths in ([16_000], [7_000, 700, 20_123], [5_000], [500_000])
    ]
    pool = model.config.audio_pool_step
    mels, samples = ([recording(group, pool, on_device) for group in sounds] for on_device in (False, True))
    assert [(item.key, item.rows) for item in mels] == [(item.key, item.rows) for item in samples]
    assert not any("mel" in item.arrays for item in samples)
    expected = model.encode("audio", mels)
    torch.testing.assert_close(model.encode("audio", samples), expected, rtol=1e-4, atol=1e-5)
    mixed = [*mels[:2], *samples[2:]]
    torch.testing.assert_close(model.encode("audio", mixed), expected, rtol=1e-4, atol=1e-5)


# ---- training -----------------------------------------------------------------------------------------------------


def test_every_parameter_learns():
    model = tiny_model("minicpmo", "4.5")
    model.requires_grad_(True)
    patches = patch_inputs(torch.randint(0, 256, (4, 12, 588), dtype=torch.uint8), torch.float32)
    sizes = torch.tensor([[3, 4], [2, 2], [2, 5], [2, 5]])
    seen = model.embed_slices(patches, sizes, torch.tensor([-1, -1, 3, 8]), torch.tensor([[0, -1], [1, -1], [2, 3]]))
    heard = model.projector(model.audio(torch.randn(2, 80, 60), torch.tensor([60, 45])))
    text = model.embed(torch.arange(50))
    x = torch.cat((seen.flatten(0, 1), heard.flatten(0, 1), text))
    model.logits(model(x, ModelInputs(torch.arange(len(x)), PackedPlan(1)))).logsumexp(-1).sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_key_bias_that_no_checkpoint_holds_never_moves():
    model = tiny_model()
    model.requires_grad_(True)
    model.audio(torch.randn(1, 80, 40), torch.tensor([40])).sum().backward()
    keys = model.audio.layers[0].attention.qkv.bias.grad.chunk(3)[1]
    assert keys.abs().max() < 1e-4


# ---- live sound ---------------------------------------------------------------------------------------------------


def live(stream: str, seed: int, frames: int = 104) -> MediaItem:
    mel = np.random.default_rng(seed).standard_normal((80, frames), dtype=np.float32)
    return MediaItem("audio", b"", 10, {"mel": mel, "context": np.array([2, 2], np.int32)}, stream)


def test_streams_in_few_shapes_hear_what_each_hears_alone():
    """Where graphs are recorded, batches are padded and keys counted in steps; rows must not notice."""
    plain, few = tiny_model(), tiny_model()
    shapes = []

    def wrap(encode, is_pure):
        return lambda *args: shapes.append(tuple(getattr(arg, "shape", arg) for arg in args)) or encode(*args)

    assert not list(few.rehearse())
    few.wrap_encoders(wrap)
    few.reserve_streams(11)
    for _ in few.rehearse():
        pass
    rehearsed = Counter(shapes)
    assert set(rehearsed.values()) == {2}
    shapes.clear()
    for second in range(32):
        items = [live(f"s{n}", 100 * n + second) for n in range(11) if second >= n // 2]
        for item, rows in zip(items, few.encode("audio", items), strict=True):
            torch.testing.assert_close(rows, plain.encode("audio", [item])[0], atol=1e-5, rtol=1e-4)
    assert {shape[0][0] for shape in shapes} <= {1, 2, 4, 8}
    assert {shape[2] for shape in shapes} == {256, 768, 1504}
    assert set(shapes) < set(rehearsed)


def test_places_of_streams_are_used_again_and_more_are_made_when_they_are_needed():
    model = tiny_model()
    model.reserve_streams(2)
    first = {name: model.encode("audio", [live(name, 7)])[0] for name in ("a", "b")}
    second = model.encode("audio", [live("c", 7), live("a", 8), live("d", 7)])
    torch.testing.assert_close(second[0], first["a"])
    alone = tiny_model()
    alone.encode("audio", [live("a", 7)])
    torch.testing.assert_close(second[1], alone.encode("audio", [live("a", 8)])[0])
    for name in "abcd":
        model.drop_stream(name)
    model.drop_stream("never was")
    for _ in range(3):
        for name in "efgh":
            torch.testing.assert_close(model.encode("audio", [live(name, 7)])[0], first["a"])
            model.drop_stream(name)
    assert model.stream_bytes == 2 * 2 * 1504 * 16 * 4
