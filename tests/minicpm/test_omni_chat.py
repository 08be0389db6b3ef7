"""MiniCPM-o 4.5: every conversation recorded from the reference's chat(), and what callers do around it."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.errors import ContextLengthError, RequestError, UnsupportedError
from sensorium.minicpm import AutoTokenizer
from sensorium.minicpm.messages import read_conversations
from sensorium.types import ChatOptions

CASES = (
    "text_only", "text_thinking", "text_tts_template", "one_image", "one_image_noslice_noid", "one_image_id_true",
    "two_images", "few_shot", "video_frames", "audio_text", "system_text", "mixed", "omni", "omni_image_id",
    "two_audios_two_turns", "long_audio", "no_penalty", "beam3",
)  # fmt: skip
GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 8}
TEXT = [{"role": "user", "content": "Who are you?"}]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name, omni, conversations):
    case = conversations[name]
    answer, prompt = omni.chat(msgs=case["msgs"], return_prompt=True, **case["chat_kwargs"])
    assert answer == case["answer"]
    assert prompt == case["prompt"]


def test_a_batch_has_all_answers(omni, conversations):
    """The reference computes them and returns the first."""
    case = conversations["batch3"]
    answers = omni.chat(msgs=case["msgs"], **case["chat_kwargs"])
    assert answers == [omni.tokenizer.decode(ids) for ids in case["generated_ids"]]


def test_a_stream_is_the_answer_in_pieces(omni, conversations):
    case = conversations["one_image"]
    stream = omni.chat(msgs=case["msgs"], **case["chat_kwargs"], stream=True)
    assert not isinstance(stream, str)
    pieces = list(stream)
    assert len(pieces) > 3
    assert "".join(pieces) == case["answer"]


def test_a_stream_that_nobody_reads_on_is_aborted(omni):
    stream = omni.chat(msgs=TEXT, stream=True, do_sample=False, max_new_tokens=200)
    next(stream)
    stream.close()
    assert omni.chat(msgs=TEXT, **GREEDY)
    assert omni.client.num_requests == 0


def test_torch_seeds_what_is_drawn(omni):
    def drawn(seed, **options):
        torch.manual_seed(seed)
        return omni.chat(msgs=TEXT, max_new_tokens=6, temperature=2.0, top_p=1.0, **options)

    for options in ({"num_beams": 1}, {}):
        assert drawn(1, **options) == drawn(1, **options)
        assert len({drawn(seed, **options) for seed in range(4)}) > 1


def test_forms_of_conversations_are_equal(omni, conversations, tmp_path):
    case = conversations["one_image_noslice_noid"]
    expected, kwargs = case["answer"], case["chat_kwargs"]
    picture, question = case["msgs"][0]["content"]
    path = tmp_path / "picture.png"
    picture.save(path)
    url = {"type": "image_url", "image_url": {"url": str(path)}}
    forms = [
        [{"role": "user", "content": [url, {"type": "text", "text": question}]}],
        [{"role": "user", "content": [{**url, "image_url": path.as_uri()}, question]}],
        [{"role": "user", "content": ({"type": "image", "image": picture}, question)}],
        json.dumps([{"role": "user", "content": [url, question]}]),
    ]
    assert [omni.chat(msgs=msgs, **kwargs) for msgs in forms] == [expected] * len(forms)
    text = [{"role": "user", "content": question}]
    assert omni.chat(image=picture, msgs=text, **kwargs) == expected
    assert omni.chat(picture, text, **kwargs) == expected
    assert text == [{"role": "user", "content": question}]


def test_sound_as_a_tensor(omni, conversations):
    case = conversations["audio_text"]
    samples, words = case["msgs"][0]["content"]
    msgs = [{"role": "user", "content": [torch.from_numpy(samples), words]}]
    assert omni.chat(msgs=msgs, **case["chat_kwargs"]) == case["answer"]


def test_rows_of_pictures_may_be_given(omni, conversations):
    case = conversations["mixed"]
    (messages,), _ = read_conversations(case["msgs"], None, ("user",), omni.checkpoint.engine.limits)
    options = ChatOptions(media_kwargs={"max_slice_nums": 3})
    prompt = omni.client.prepare_chat(messages, options)
    (picture,) = [item for item in prompt.media if item.modality == "image"]
    (rows,) = omni.client.loaded.model.encode("image", [picture])
    omni.client.reset_prefix_cache()
    for given in (rows, [rows[:64], rows[64:].view(-1, 64, 256)], [rows.numpy()]):
        assert omni.chat(msgs=case["msgs"], vision_hidden_states=given, **case["chat_kwargs"]) == case["answer"]
    both = omni.chat(msgs=[case["msgs"], TEXT], vision_hidden_states=[rows, torch.zeros(0, 256)], **case["chat_kwargs"])
    assert both[0] == case["answer"]
    assert omni.chat(msgs=case["msgs"], vision_hidden_states=-rows, **case["chat_kwargs"]) != case["answer"]


def test_parts_of_a_video_address_are_its_frames_and_sounds(omni, video):
    msgs = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": str(video), "stack_frames": 2}}]}]
    _, prompt = omni.chat(msgs=msgs, omni_mode=True, return_prompt=True, max_slice_nums=1, **GREEDY)
    second = "<image>./</image><audio>./</audio><image>./</image>"
    assert second * 3 in prompt


def test_a_prompt_that_is_too_long_is_cut_at_its_end(omni, caplog):
    long = [{"role": "user", "content": "abc " * 50}]
    whole = omni.chat(msgs=long, **GREEDY)
    assert omni.chat(msgs=long, max_inp_length=40, **GREEDY) != whole
    assert "cut to the first 40" in caplog.text
    picture = [{"role": "user", "content": [Image.new("RGB", (30, 30)), "What?"]}]
    with pytest.raises(ContextLengthError, match="inside a medium"):
        omni.chat(msgs=picture, max_inp_length=40, **GREEDY)


def test_tokenizers_of_the_model_are_taken_and_others_refused(omni, reference, golden):
    own = AutoTokenizer.from_pretrained(reference / "tiny", trust_remote_code=True)
    expected = omni.chat(msgs=TEXT, **GREEDY)
    assert omni.chat(msgs=TEXT, tokenizer=own, processor=omni.processor, **GREEDY) == expected
    other = AutoTokenizer.from_pretrained(golden / "minicpmo45" / "v26" / "tiny")
    with pytest.raises(RequestError, match=r"tokenizer: .*same checkpoint"):
        omni.chat(msgs=TEXT, tokenizer=other, **GREEDY)
    with pytest.raises(RequestError, match="processor: int is no tokenizer"):
        omni.chat(msgs=TEXT, processor=3, **GREEDY)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        ({"msgs": None}, RequestError, "msgs: give a list"),
        ({"msgs": "[1"}, RequestError, "no JSON"),
        ({"msgs": [{"role": "tool", "content": "x"}]}, RequestError, r"msgs\[0\]\.role is 'tool'"),
        ({"msgs": [{"role": "assistant", "content": "x"}]}, RequestError, "use one of system, user"),
        ({"msgs": [{"role": "user", "content": [3]}]}, RequestError, r"msgs\[0\]\.content\[0\] is a int"),
        ({"msgs": [{"role": "user", "content": [np.zeros((4, 4, 3), np.uint8)]}]}, RequestError, "is a ndarray"),
        ({"image": Image.new("RGB", (30, 30)), "msgs": [{"role": "user", "content": ["x"]}]}, RequestError, "image: "),
        ({"vision_hidden_states": []}, RequestError, "vision_hidden_states: give a tensor"),
        ({"vision_hidden_states": torch.zeros(64, 256)}, RequestError, "64 rows; the pictures of the prompt take 0"),
        ({"min_new_tokens": 2}, UnsupportedError, "pass num_beams=1"),
        ({"max_slice_nums": 99}, RequestError, "max_slice_nums"),
        ({"msgs": [TEXT, TEXT], "stream": True}, RequestError, "one conversation"),
        ({"length_penalty": 2}, TypeError, "unexpected keyword argument 'length_penalty'"),
        ({"temporal_ids": [[0]]}, TypeError, "temporal_ids"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(omni, kwargs, error, words):
    with pytest.raises(error, match=words):
        omni.chat(**{"msgs": TEXT, "do_sample": False, "max_new_tokens": 2, **kwargs})


def test_what_has_no_effect_is_said(omni, caplog):
    caplog.set_level(logging.WARNING)
    omni.chat(msgs=TEXT, temperature=0.3, **GREEDY)
    assert "temperature has no effect with do_sample=False" in caplog.text


@pytest.mark.parametrize(
    ("mode", "language", "with_voice"),
    [
        ("omni", "en", True), ("omni", "en", False), ("omni", "zh", True), ("omni", "zh", False),
        ("audio_assistant", "en", True), ("audio_assistant", "en", False), ("audio_assistant", "zh", True),
        ("audio_assistant", "zh", False), ("audio_roleplay", "en", True), ("audio_roleplay", "en", False),
        ("audio_roleplay", "zh", True), ("audio_roleplay", "zh", False), ("voice_cloning", "en", True),
        ("voice_cloning", "zh", True), ("default", "en", True), ("default", "en", False), ("default", "zh", False),
    ],
)  # fmt: skip
def test_system_messages_equal_the_reference(mode, language, with_voice, omni, golden):
    cases = json.loads((golden / "minicpmo45" / "prompts" / "prompts.json").read_text())["cases"]
    name = f"sys_{mode}_{language}_{'ref' if with_voice else 'noref'}"
    expected = next(case for case in cases if case["name"] == name)["messages"][0]["content"]
    voice = np.zeros(48_000, np.float32) if with_voice else None
    message = omni.get_sys_prompt(voice, mode, language)
    assert message["role"] == "system"
    said = [{"text": part} if isinstance(part, str) else {"audio_samples": len(part)} for part in message["content"]]
    assert said == expected


def test_a_voice_may_be_a_file_and_cut(omni, video):
    message = omni.get_sys_prompt(ref_audio=str(video), mode="omni", ref_audio_max_ms=250)
    assert len(message["content"][1]) == 4000
    with pytest.raises(RequestError, match="needs the voice"):
        omni.get_sys_prompt(mode="voice_cloning")
    with pytest.raises(RequestError, match="language"):
        omni.get_sys_prompt(mode="omni", language="fr")
