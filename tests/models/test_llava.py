"""LLaVA-1.5 against stored outputs of the reference on a tiny checkpoint, and what it refuses."""

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
from vl_golden import ROOT, Family, encode, generate, needs_golden, normalised

from sensorium.errors import CheckpointError, RequestError, UnsupportedError
from sensorium.media import image
from sensorium.models import loader
from sensorium.models.llava import Config, Model
from sensorium.models.llava_processor import Processor
from sensorium.types import ChatOptions, Message, Prompt

pytestmark = needs_golden
FAMILY = Family("llava")


@pytest.fixture(scope="module")
def client():
    with FAMILY.client() as made:
        yield made


def config(**changes: Any) -> Config:
    return Config.from_hf(json.loads((FAMILY.folder / "config.json").read_text()) | changes)


def folder_with(tmp_path: Path, **files: Any) -> Path:
    """The checkpoint with some of its JSON files changed; None leaves a file out."""
    for path in FAMILY.folder.glob("*.json"):
        content = files.get(path.stem, {})
        if content is not None:
            (tmp_path / path.name).write_text(json.dumps(json.loads(path.read_text()) | content))
    return tmp_path


@pytest.mark.parametrize("case", FAMILY.cases)
def test_prompt_and_pixels(client, case):
    prompt = FAMILY.prompt(client, case)
    assert list(prompt.ids) == FAMILY.tensor(case, "input_ids")[0].tolist()
    assert [prompt.ids[span.start : span.stop] for span in prompt.spans] == [(260,) * 16] * len(prompt.media)
    for item, stored in zip(prompt.media, FAMILY.tensors.get(f"{case}/pixel_values", ()), strict=True):
        np.testing.assert_allclose(normalised(item.arrays, "pixels").transpose(2, 0, 1), stored, atol=1e-6)


@pytest.mark.parametrize("case", ["image1", "image2"])
def test_rows_together_and_alone(client, case):
    items = FAMILY.prompt(client, case).media
    model = client.loaded.model
    with torch.inference_mode():
        rows = encode(model, items)
        stored = torch.from_numpy(FAMILY.tensor(case, "image_features"))
        torch.testing.assert_close(torch.cat(rows), stored, rtol=1e-4, atol=1e-4)
        for item, together in zip(items, rows, strict=True):
            torch.testing.assert_close(model.encode("image", [item])[0], together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", FAMILY.cases)
def test_logits(client, case):
    FAMILY.check_logits(client, case, FAMILY.prompt(client, case))


def test_greedy_tokens_alone_together_and_from_the_prefix_cache(client):
    prompts = [FAMILY.prompt(client, case) for case in FAMILY.cases]
    stored = [FAMILY.greedy(case) for case in FAMILY.cases]
    assert [generate(client, prompt)[0] for prompt in prompts] == stored
    before = client.stats().prefix_hit_tokens
    assert generate(client, *prompts) == stored
    assert client.stats().prefix_hit_tokens > before


def test_greedy_tokens_in_small_chunks():
    with FAMILY.client(max_num_batched_tokens=7) as client:
        prompts = [FAMILY.prompt(client, case) for case in FAMILY.cases]
        assert generate(client, *prompts) == [FAMILY.greedy(case) for case in FAMILY.cases]


@pytest.mark.parametrize("name", ["A", "B"])
def test_pixels_of_published_size(tmp_path, name):
    vision = {"image_size": 336, "patch_size": 14, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    sizes = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    processor = Processor(folder_with(tmp_path, preprocessor_config=sizes), config(vision_config=vision))
    vectors = load_file(ROOT / "preprocess" / "vectors.safetensors")
    prompt = processor.raw("<image>", [image.from_array(vectors[f"image{name}"])], ChatOptions())
    assert prompt.spans[0].length == 576
    values = normalised(prompt.media[0].arrays, "pixels").transpose(2, 0, 1)
    np.testing.assert_allclose(values.reshape(-1)[::997], vectors[f"llava15_{name}/sample"], atol=1e-6)


def test_a_thread_of_pixels_is_cut_before_it_is_scaled(client):
    thread = np.zeros((16_000, 1, 3), dtype=np.uint8)
    thread[8_000:] = 255
    prompt = client.loaded.processor.raw("<image>", [image.from_array(thread)], ChatOptions())
    pixels = prompt.media[0].arrays["pixels"]
    assert pixels.shape == (56, 56, 3)
    assert pixels[0].max() < 32 < 224 < pixels[-1].min()


@pytest.mark.parametrize(
    "rules",
    [
        ((r"^language_model\.model\.", "model.language_model."), (r"^language_model\.", ""), (r"^(?=v|mu)", "model.")),
        ((r"^vision_tower\.vision_model\.", "vision_tower."),),
    ],
    ids=["in memory", "saved by 5.x"],
)
def test_every_layout_of_tensor_names(client, tmp_path, rules):
    stored = load_tensors(FAMILY.folder / "model.safetensors")
    renamed = {}
    for name, tensor in stored.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    assert renamed.keys() != stored.keys()
    save_file(renamed, tmp_path / "model.safetensors")
    model = loader.load(Model, config(), tmp_path, "cpu", torch.float32)
    for (name, ours), theirs in zip(model.named_parameters(), client.loaded.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_features_of_several_layers_with_the_class_position():
    made = loader.build(
        Model, config(vision_feature_layer=[-3, 3], vision_feature_select_strategy="full"), "cpu", torch.float32
    )
    loader.init_random_(made, seed=1)
    assert made.vision is not None
    assert (made.config.depths, made.config.rows, len(made.vision.layers)) == ((1, 3), 17, 3)
    with torch.inference_mode():
        seen = made.vision(torch.randn(2, 3, 56, 56))
    assert seen.shape == (2, 17, 64)
    assert not made.ignored[-3].startswith("vision_tower.vision_model.encoder")


def test_text_only(tmp_path):
    with FAMILY.client(init_vision=False) as client:
        assert client.modalities == ()
        assert generate(client, FAMILY.prompt(client, "text")) == [FAMILY.greedy("text")]
        with pytest.raises(UnsupportedError, match="image"):
            FAMILY.prompt(client, "image1")


# ---- chat ---------------------------------------------------------------------------------------------------------


def chat(processor: Any, *parts: Any, role: str = "user", **options: Any) -> Prompt:
    return processor.chat([Message(role, parts)], ChatOptions(**options))  # pyright: ignore


def test_chat_places_pictures_as_the_template_says(client):
    processor, picture = client.loaded.processor, FAMILY.media("image1")[0]
    prompt = chat(processor, "What is this?", picture)
    assert prompt.text == "USER: <image>\nWhat is this? ASSISTANT:"
    written = processor.raw(prompt.text, [picture], ChatOptions())
    assert (prompt.ids, prompt.spans) == (written.ids, written.spans)
    # The same prompt with every placeholder written out.
    assert processor.raw(prompt.ids, [picture], ChatOptions()).spans == prompt.spans


def test_equal_pictures_are_one_item(client):
    picture = FAMILY.media("image1")[0]
    prompt = chat(client.loaded.processor, picture, picture, "Same?")
    assert ([span.media for span in prompt.spans], len(prompt.media)) == ([0, 0], 1)


def test_users_cannot_write_placeholders(client):
    processor, picture = client.loaded.processor, FAMILY.media("image1")[0]
    for role in ("user", "assistant"):
        prompt = chat(processor, picture, "an <image> </s> tag", role=role)
        assert len(prompt.spans) == 1
        assert prompt.ids.count(260) == 16
        assert 258 not in prompt.ids
        assert "an <image> </s> tag" in (prompt.text or "")


def test_a_template_of_the_checkpoint_that_takes_strings(tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    processor = Processor(folder_with(tmp_path, tokenizer_config={"chat_template": template}), config())
    prompt = chat(processor, FAMILY.media("image1")[0], "Well?")
    assert prompt.text == "user: <image>\nWell?\n"
    assert prompt.spans[0].length == 16


def test_a_message_can_be_continued(client):
    messages = [Message("user", ("Hi",)), Message("assistant", ("Well",))]
    prompt = client.loaded.processor.chat(messages, ChatOptions(continue_final_message=True))
    assert prompt.text == "USER: Hi ASSISTANT: Well"


# ---- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_feature_select_strategy": "half"}, "vision_feature_select_strategy"),
        ({"vision_feature_layer": -9}, "vision_feature_layer"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"text_config": {"model_type": "mistral"}}, "text_config.model_type"),
        ({"vision_config": {"model_type": "pixtral"}}, "vision_config.model_type"),
        ({"vision_config": {"hidden_act": "relu"}}, "hidden_act"),
    ],
)
def test_configurations_that_are_refused(changes, named):
    with pytest.raises(CheckpointError, match=named):
        config(**changes)


@pytest.mark.parametrize(
    "changes", [{"do_center_crop": False}, {"rescale_factor": 1.0}, {"crop_size": 28}, {"size": {"height": 56}}]
)
def test_preprocessing_that_is_refused(tmp_path, changes):
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        Processor(folder_with(tmp_path, preprocessor_config=changes), config())


def test_requests_that_are_refused(client):
    processor, picture = client.loaded.processor, FAMILY.media("image1")[0]
    with pytest.raises(RequestError, match="2 image placeholders"):
        processor.raw("<image><image>", [picture], ChatOptions())
    with pytest.raises(RequestError, match="token ids"):
        processor.raw([1, 5000], [], ChatOptions())
    with pytest.raises(UnsupportedError, match="max_slice_nums"):
        chat(processor, picture, media_kwargs={"max_slice_nums": 4})
    with pytest.raises(UnsupportedError, match="max_slice_nums"):
        chat(processor, image.from_array(picture.data, options={"max_slice_nums": 4}))
    with pytest.raises(RequestError, match="no messages"):
        processor.chat([], ChatOptions())
