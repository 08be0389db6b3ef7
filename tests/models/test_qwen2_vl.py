"""Qwen2-VL and Qwen2.5-VL against stored outputs of the reference on tiny checkpoints, and what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file
from vl_golden import ROOT, Family, axes, encode, generate, needs_golden, slabs

from sensorium.errors import CheckpointError, MediaError, RequestError, UnsupportedError
from sensorium.media import image
from sensorium.models import loader
from sensorium.models.qwen2_vl import Config, Model
from sensorium.models.qwen2_vl_processor import PixelLimits, Processor, smart_resize
from sensorium.types import ChatOptions, Message, Prompt, Role

pytestmark = needs_golden
FAMILIES = {name: Family(name) for name in ("qwen2_vl", "qwen2_5_vl")}
CASES = [(name, case) for name, family in FAMILIES.items() for case in family.cases]
# The stored frames are of processed size, which is below the least that a video's frames are scaled to.
SMALL = ChatOptions(media_kwargs={"min_pixels": 56 * 56})
IMAGE_PAD, VIDEO_PAD = 262, 263
ROLES: tuple[Role, ...] = ("user", "assistant")


@pytest.fixture(scope="module")
def clients():
    with FAMILIES["qwen2_vl"].client() as older, FAMILIES["qwen2_5_vl"].client() as newer:
        yield {"qwen2_vl": older, "qwen2_5_vl": newer}


def read(name: str) -> dict[str, Any]:
    return json.loads((FAMILIES[name].folder / "config.json").read_text())


def prompts_of(name: str, client: Any) -> list[Prompt]:
    return [FAMILIES[name].prompt(client, case, SMALL) for case in FAMILIES[name].cases]


def stored_tokens(name: str) -> list[list[int]]:
    return [FAMILIES[name].greedy(case) for case in FAMILIES[name].cases]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_prompt_positions_and_pixels(clients, name, case):
    family, client = FAMILIES[name], clients[name]
    prompt = family.prompt(client, case, SMALL)
    assert list(prompt.ids) == family.tensor(case, "input_ids")[0].tolist()
    if not prompt.media:
        assert prompt.positions is None
        return
    assert np.array_equal(axes(prompt), family.tensor(case, "position_ids"))
    for modality, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        items = [item for item in prompt.media if item.modality == modality]
        grids = [
            [-(-len(frames) // 2), frames.shape[1] // 14, frames.shape[2] // 14]
            for frames in (item.arrays["frames"] for item in items)
        ]
        if items:
            assert grids == family.tensor(case, f"{modality}_grid_thw").tolist()
            patches = torch.cat([client.loaded.model.vision.patches(slab) for item in items for slab in slabs(item)])
            np.testing.assert_allclose(patches.numpy(), family.tensor(case, pixels), atol=1e-6)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_rows_and_logits(clients, name, case):
    family, client = FAMILIES[name], clients[name]
    prompt = family.prompt(client, case, SMALL)
    model = client.loaded.model
    with torch.inference_mode():
        rows = encode(model, prompt.media)
        for modality in {item.modality for item in prompt.media}:
            of_it = [part for part, item in zip(rows, prompt.media, strict=True) if item.modality == modality]
            stored = torch.from_numpy(family.tensor(case, f"{modality}_features"))
            torch.testing.assert_close(torch.cat(of_it), stored, rtol=1e-4, atol=1e-4)
        for item, together in zip(prompt.media, rows, strict=True):
            torch.testing.assert_close(model.encode(item.modality, [item])[0], together, rtol=1e-5, atol=1e-5)
    family.check_logits(client, case, prompt)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_alone_together_and_from_the_prefix_cache(clients, name):
    client = clients[name]
    prompts = prompts_of(name, client)
    assert [generate(client, prompt)[0] for prompt in prompts] == stored_tokens(name)
    before = client.stats().prefix_hit_tokens
    assert generate(client, *prompts) == stored_tokens(name)
    assert client.stats().prefix_hit_tokens >= before + 32


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_in_small_chunks(name):
    with FAMILIES[name].client(max_num_batched_tokens=7, enable_prefix_caching=False) as client:
        assert generate(client, *prompts_of(name, client)) == stored_tokens(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_tokens_after_preemption(name):
    with FAMILIES[name].client(kv_cache_bytes=11 * 16 * 512, enable_prefix_caching=False) as client:
        assert generate(client, *prompts_of(name, client)) == stored_tokens(name)
        assert client.stats().preemptions > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_slabs_in_batches_of_any_size(clients, name, monkeypatch):
    client = clients[name]
    items = FAMILIES[name].prompt(client, "video_long", SMALL).media
    with torch.inference_mode():
        whole = client.loaded.model.encode("video", items)[0]
        monkeypatch.setattr("sensorium.models.qwen2_vl.BATCH_PATCHES", 40)
        torch.testing.assert_close(client.loaded.model.encode("video", items)[0], whole, rtol=1e-5, atol=1e-5)


# ---- sizes --------------------------------------------------------------------------------------------------------


def test_sizes_of_pictures_and_frames():
    tables = json.loads((ROOT / "preprocess" / "tables.json").read_text())["tables"]
    limits = PixelLimits(3136, 12845056)
    for height, width, tall, wide, *_ in tables["qwen2_vl_image"]["rows"]:
        assert smart_resize(height, width, 28, limits) == (tall, wide)
    for frames, height, width, shared, tall, wide, *_ in tables["qwen2_vl_video"]["rows"]:
        limits = PixelLimits(128 * 28 * 28, 768 * 28 * 28, shared).for_frames(frames, 28, 2)
        assert smart_resize(height, width, 28, limits) == (tall, wide)


def test_extreme_pictures_and_limits_of_requests(clients):
    processor = clients["qwen2_vl"].loaded.processor
    with pytest.raises(MediaError, match="narrow"):
        processor.raw("<|image_pad|>", [image.from_array(np.zeros((10, 2001, 3), dtype=np.uint8))], ChatOptions())
    picture = image.from_array(np.zeros((600, 600, 3), dtype=np.uint8))
    rows = [
        processor.raw("<|image_pad|>", [picture], ChatOptions(media_kwargs=wishes)).media[0].rows
        for wishes in ({}, {"max_pixels": 112 * 112}, {"min_pixels": 500_000})
    ]
    assert rows == [49, 9, 49]  # 50176 pixels are the most of this checkpoint


@pytest.mark.parametrize("name", ["A", "B"])
def test_pixels_of_published_size(clients, tmp_path, name):
    family = FAMILIES["qwen2_vl"]
    processor = Processor(family_folder(tmp_path, family, max_pixels=12845056), Config.from_hf(read("qwen2_vl")))
    vectors = load_file(ROOT / "preprocess" / "vectors.safetensors")
    item = processor.raw("<|image_pad|>", [image.from_array(vectors[f"image{name}"])], ChatOptions()).media[0]
    patches = clients["qwen2_vl"].loaded.model.vision.patches(slabs(item)[0])
    np.testing.assert_allclose(patches.flatten()[::997], vectors[f"qwen2_vl_{name}/sample"], atol=1e-6)


def family_folder(tmp_path: Path, family: Family, **preprocessor: Any) -> Path:
    for path in family.folder.glob("*.json"):
        content = json.loads(path.read_text())
        content |= preprocessor if path.stem == "preprocessor_config" else {}
        (tmp_path / path.name).write_text(json.dumps(content))
    return tmp_path


# ---- checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_later_layout_of_names_and_configuration(clients, tmp_path, name):
    renamed = {
        re.sub("^visual\\.", "model.visual.", re.sub("^model\\.", "model.language_model.", old)): tensor
        for old, tensor in load_tensors(FAMILIES[name].folder / "model.safetensors").items()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    flat = read(name)
    outer = {"model_type", "vision_config", "image_token_id", "video_token_id", "tie_word_embeddings"}
    inner = {key: value for key, value in flat.items() if key not in outer} | {"tie_word_embeddings": False}
    inner["rope_parameters"] = {
        "rope_theta": inner.pop("rope_theta"),
        "mrope_section": inner.pop("rope_scaling")["mrope_section"],
    }
    nested = {key: value for key, value in flat.items() if key in outer} | {"text_config": inner}
    model = loader.load(Model, Config.from_hf(nested), tmp_path, "cpu", torch.float32)
    theirs = clients[name].loaded.model
    assert model.config.decoder.rope.theta == theirs.config.decoder.rope.theta == 1e6
    for (path, ours), other in zip(model.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, other), path


@pytest.mark.parametrize("name", FAMILIES)
def test_text_only(name):
    with FAMILIES[name].client(init_vision=False) as client:
        assert client.modalities == ()
        assert generate(client, FAMILIES[name].prompt(client, "text")) == [FAMILIES[name].greedy("text")]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": None}, "mrope_section"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"vision_config": {"depth": 1}}, "vision_config has no"),
        ({"vision_config": {"in_chans": 4}}, "channels"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act"),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_configurations_that_are_refused(name, changes, named):
    with pytest.raises(CheckpointError, match=named):
        Config.from_hf(read(name) | changes)


@pytest.mark.parametrize("changes", [{"patch_size": 16}, {"do_resize": False}, {"min_pixels": 10**8}])
def test_preprocessing_that_is_refused(tmp_path, changes):
    folder = family_folder(tmp_path, FAMILIES["qwen2_vl"], **changes)
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        Processor(folder, Config.from_hf(read("qwen2_vl")))


# ---- chat ---------------------------------------------------------------------------------------------------------


def test_chat_places_media_as_the_template_says(clients):
    family, processor = FAMILIES["qwen2_vl"], clients["qwen2_vl"].loaded.processor
    picture, film = family.media("image_video")
    messages = [Message("system", ("Be brief.",)), Message("user", (picture, film, "Both"))]
    prompt = processor.chat(messages, SMALL)
    case = family.cases["image_video"]["prompt"]
    assert prompt.text == "<|im_start|>system\nBe brief.<|im_end|>\n" + case
    written = processor.raw(prompt.text, [picture, film], SMALL)
    assert (prompt.ids, prompt.spans) == (written.ids, written.spans)
    assert np.array_equal(axes(prompt), axes(written))
    expanded = processor.raw(prompt.ids, [film, picture], SMALL)
    assert np.array_equal(axes(prompt), axes(expanded))
    alone = processor.chat([Message("user", ("Hi",))], ChatOptions())
    assert alone.text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi")


def test_users_cannot_write_placeholders(clients):
    processor = clients["qwen2_vl"].loaded.processor
    picture = FAMILIES["qwen2_vl"].media("image1")[0]
    for role in ROLES:
        message = Message(role, (picture, "a <|image_pad|><|video_pad|><|im_end|> b"))
        prompt = processor.chat([message], ChatOptions())
        assert (prompt.ids.count(IMAGE_PAD), prompt.ids.count(VIDEO_PAD)) == (6, 0)
        assert prompt.ids.count(258) == 2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_slice_nums": 2}, "max_slice_nums"),
        ({"fps": 2}, "fps"),
        ({"min_pixels": 3}, "min_pixels"),
        ({"max_pixels": "many"}, "max_pixels"),
        ({"min_pixels": 1 << 25}, "min_pixels"),
        ({"min_pixels": 10_000, "max_pixels": 5_000}, "above"),
    ],
)
def test_media_options_that_are_refused(clients, options, named):
    processor = clients["qwen2_vl"].loaded.processor
    picture = FAMILIES["qwen2_vl"].media("image1")[0]
    with pytest.raises(RequestError, match=named):
        processor.raw("<|image_pad|>", [picture], ChatOptions(media_kwargs=options))


@pytest.mark.parametrize("option", [{"stack_frames": 2}, {"packing": 2}, {"use_audio": True}])
def test_video_options_that_are_refused(clients, option):
    frames = FAMILIES["qwen2_vl"].media("video")[0]
    film = type(frames)("video", frames.data, frames.digest, times_s=frames.times_s, options=option)
    with pytest.raises(UnsupportedError, match=next(iter(option))):
        clients["qwen2_vl"].loaded.processor.raw("<|video_pad|>", [film], SMALL)


def test_placeholders_and_media_must_agree(clients):
    processor = clients["qwen2_vl"].loaded.processor
    picture, film = FAMILIES["qwen2_vl"].media("image_video")
    with pytest.raises(RequestError, match="video placeholders"):
        processor.raw("<|image_pad|>", [picture, film], SMALL)
    with pytest.raises(RequestError, match="fit no image"):
        processor.raw([IMAGE_PAD] * 7 + [10, IMAGE_PAD], [picture], SMALL)
