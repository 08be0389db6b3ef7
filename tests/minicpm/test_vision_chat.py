"""MiniCPM-V 4.5 and 2.6: the conversations recorded from their reference, and what is theirs alone."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from models import minicpm_golden
from PIL import Image

from sensorium.errors import CheckpointError, RequestError, UnsupportedError
from sensorium.minicpm import AutoModel

TEXT = [{"role": "user", "content": "hi"}]
V45 = ("image", "image_think", "video_pack1", "video_pack3", "video_pack6", "video_pack3_tail", "video_no_temporal",
       "system")  # fmt: skip
V26 = ("text", "image_sliced", "two_images", "image_noid", "beam3")


@pytest.fixture(scope="module")
def models(golden):
    made = {}
    for name in ("v45", "v26"):
        made[name] = AutoModel.from_pretrained(golden / "minicpmo45" / name / "tiny", device_map="cpu")
    yield made
    for model in made.values():
        model.close()


@pytest.fixture(scope="module")
def cases(golden):
    """(model, case) -> its record, with msgs as chat() takes them."""
    found = {}
    for name, field in (("v45", "tiny_cases"), ("v26", "cases")):
        record = json.loads((golden / "minicpmo45" / name / f"{name}.json").read_text())
        shapes = record["images"]
        for case in record[field]:
            content = case.get("content")
            if content is None:  # the records of V-4.5 have the prompt alone
                question = case["prompt"].split("user\n")[-1].split("<|im_end|>")[0].split(")\n")[-1]
                names = ["small320x240"] * case["prompt"].count("./")
                if case["name"].startswith("video"):
                    names = [f"frame{number}" for number in range(len(names))]
                    shapes |= {f"frame{i}": shapes["frame426x240"] | {"seed": 50 + i} for i in range(len(names))}
                content = [*({"image": picture} for picture in names), question]
            parts = [one if isinstance(one, str) else picture(one["image"], shapes) for one in content]
            found[name, case["name"]] = {**case, "msgs": [{"role": "user", "content": parts}]}
    return found


def picture(name, shapes):
    return Image.fromarray(minicpm_golden.picture(name, shapes))


@pytest.mark.parametrize(("model", "name"), [*(("v45", name) for name in V45), *(("v26", name) for name in V26)])
def test_equals_the_reference(model, name, models, cases):
    """Answers of the reference lack every `!` (token 0), which are kept here."""
    case = cases[model, name]
    answer = models[model].chat(msgs=case["msgs"], tokenizer=models[model].tokenizer, **case["chat_kwargs"])
    thinking = "<think>\n" if case["chat_kwargs"].get("enable_thinking") else ""
    assert answer == thinking + models[model].tokenizer.decode(case["generated_ids"]).strip()
    if 0 not in case["generated_ids"]:
        assert answer == case["answer"]


def test_temporal_ids_may_be_arrays(models, cases):
    case = cases["v45", "video_pack6"]
    kwargs = case["chat_kwargs"] | {"temporal_ids": [np.array(case["chat_kwargs"]["temporal_ids"][0], np.int32)]}
    assert models["v45"].chat(msgs=case["msgs"], **kwargs) == case["answer"]


def test_lists_of_conversations_have_lists_of_answers(models, cases):
    one, two = cases["v45", "video_pack3"], cases["v45", "image"]
    kwargs = {"sampling": False, "num_beams": 1, "repetition_penalty": 1.03, "max_new_tokens": 16}
    answers = models["v45"].chat(msgs=[two["msgs"], TEXT], system_prompt="Be brief.", **kwargs)
    assert answers[1] == cases["v45", "system"]["answer"]
    packed = models["v45"].chat(
        msgs=[one["msgs"], one["msgs"]],
        temporal_ids=[one["chat_kwargs"]["temporal_ids"]] * 2,
        use_image_id=False,
        max_slice_nums=1,
        **kwargs,
    )
    assert packed == [one["answer"]] * 2
    with pytest.raises(RequestError, match="temporal_ids: 1 for 2 conversations"):
        models["v45"].chat(msgs=[one["msgs"]] * 2, temporal_ids=one["chat_kwargs"]["temporal_ids"][:1])


def test_streams(models, cases):
    case = cases["v45", "image_think"]
    kwargs = {"sampling": True, "do_sample": False, "max_new_tokens": 16, "max_slice_nums": 1}
    pieces = list(models["v45"].chat(msgs=case["msgs"], stream=True, enable_thinking=True, **kwargs))
    assert pieces[0] == "<think>\n"
    assert "".join(pieces) == case["answer"]
    with pytest.raises(RequestError, match="stream: needs sampling=True"):
        models["v45"].chat(msgs=TEXT, sampling=False, stream=True)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"enable_thinking": True}, UnsupportedError, "versions before 4.5"),
        ({"temporal_ids": [[0]]}, UnsupportedError, "temporal_ids"),
        ({"omni_mode": True}, TypeError, "omni_mode"),
        ({"msgs": [{"role": "system", "content": "x"}]}, RequestError, "use one of user"),
        ({"vision_hidden_states": [[]]}, RequestError, "vision_hidden_states"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(models, kwargs, error, words):
    with pytest.raises(error, match=words):
        models["v26"].chat(**{"msgs": TEXT, **kwargs})


def test_what_has_no_effect_is_said(models, caplog):
    caplog.set_level(logging.WARNING)
    models["v45"].chat(msgs=TEXT, num_beams=2, max_new_tokens=2)
    models["v45"].chat(msgs=TEXT, sampling=False, num_beams=1, top_p=0.5, max_new_tokens=2)
    assert "num_beams has no effect with sampling=True" in caplog.text
    assert "top_p has no effect with sampling=False" in caplog.text


def test_quantised_checkpoints_are_refused(golden, tmp_path):
    source = golden / "minicpmo45" / "v45" / "tiny"
    for path in source.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(CheckpointError, match=r"quantised \(awq\); load the bfloat16 release"):
        AutoModel.from_pretrained(tmp_path)
