"""The offline API, on any small model: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import base64
import io
import threading
import wave

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium import LLM, SamplingParams
from sensorium.errors import ContextLengthError, MediaError, MediaFetchError, RequestError, SensoriumError
from sensorium.messages import read_media, read_messages
from sensorium.types import MediaRef

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
SAMPLES = np.sin(np.arange(16000) / 20).astype(np.float32) / 2


@pytest.fixture(scope="module")
def llm(any_model):
    with LLM(str(any_model), max_model_len=1024, max_num_seqs=4, max_waiting=3, kv_cache_bytes=32 << 20) as made:
        yield made


def ask(llm: LLM, *parts: object, **options: object) -> list[int]:
    (output,) = llm.chat([{"role": "user", "content": list(parts)}], GREEDY, use_tqdm=False, **options)
    return output.outputs[0].token_ids


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "PNG")
    return buffer.getvalue()


def wav() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((SAMPLES * 32767).astype(np.int16).tobytes())
    return buffer.getvalue()


def test_outputs_come_in_order_however_many_wait(llm):
    """More prompts than the queue holds; each equals its answer alone."""
    prompts = [f"prompt {i} " * (i + 1) for i in range(11)]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    alone = [llm.generate(prompt, GREEDY, use_tqdm=False)[0] for prompt in prompts]
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in alone]
    assert all(o.finished and o.outputs[0].finish_reason == "length" for o in outputs)


def test_prompt_forms_mean_the_same(llm):
    text = llm.generate("Hello there", GREEDY)[0]
    ids = text.prompt_token_ids
    for form in (ids, [ids], {"prompt": "Hello there"}, [{"prompt_token_ids": ids}]):
        assert llm.generate(form, GREEDY)[0].outputs[0].token_ids == text.outputs[0].token_ids


def test_sampling_params_one_or_one_each(llm):
    lengths = [2, 5]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    assert [len(o.outputs[0].token_ids) for o in llm.generate(["a", "b"], params)] == lengths
    with pytest.raises(ValueError, match="2 sampling_params for 3 prompts"):
        llm.generate(["a", "b", "c"], params)


def test_logprobs_come_one_a_token(llm):
    sampling = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=2)
    answer = llm.generate("a", sampling)[0].outputs[0]
    assert [next(iter(position)) for position in answer.logprobs] == answer.token_ids
    chosen = [position[token] for position, token in zip(answer.logprobs, answer.token_ids, strict=True)]
    assert all(len(position) == 2 for position in answer.logprobs)
    assert [item.rank for item in chosen] == [1, 1, 1]
    assert "".join(item.decoded_token for item in chosen) == answer.text
    assert answer.cumulative_logprob == pytest.approx(sum(item.logprob for item in chosen))
    assert answer.finished()


def test_a_picture_is_the_same_in_every_form(llm, tmp_path):
    (tmp_path / "p.png").write_bytes(png())
    url = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    question = {"type": "text", "text": "what?"}
    expected = ask(llm, {"type": "image_url", "image_url": {"url": url}}, question)
    pil = Image.fromarray(PIXELS)
    forms = [pil, PIXELS, PIXELS.transpose(2, 0, 1), torch.from_numpy(PIXELS), png(), tmp_path / "p.png"]
    assert all(ask(llm, {"type": "image", "image": form}, question) == expected for form in forms)


def test_another_picture_is_another_question(llm):
    def logprob(pixels: np.ndarray) -> float:
        message = {"role": "user", "content": [{"type": "image", "image": pixels}, {"type": "text", "text": "what?"}]}
        sampling = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
        return llm.chat([message], sampling, use_tqdm=False)[0].outputs[0].cumulative_logprob

    assert logprob(PIXELS) == pytest.approx(logprob(PIXELS.copy()), abs=1e-5)
    assert logprob(PIXELS) != pytest.approx(logprob(PIXELS // 8), abs=1e-3)


def test_a_recording_is_the_same_in_every_form(llm, tmp_path):
    (tmp_path / "p.wav").write_bytes(wav())
    encoded = {"data": base64.b64encode(wav()).decode(), "format": "wav"}
    expected = ask(llm, {"type": "input_audio", "input_audio": encoded})
    integers = (SAMPLES * 32767).astype(np.int16)
    forms = [str(tmp_path / "p.wav"), wav(), integers, (integers, 16000), (np.stack([integers, integers]), 16000)]
    assert all(ask(llm, {"type": "audio", "audio": form}) == expected for form in forms)


def test_raw_prompts_take_media_by_placeholder(llm):
    frames = [PIXELS, PIXELS[::-1]]
    data = {"image": [PIXELS, Image.fromarray(PIXELS)], "audio": (SAMPLES, 16000), "video": (frames, 2)}
    prompt = "<image>./</image> <audio>./</audio> (<image>./</image>) <video>./</video>"
    output = llm.generate({"prompt": prompt, "multi_modal_data": data}, GREEDY)[0]
    assert output.usage.media_tokens["audio"] == 10
    assert output.usage.media_tokens["image"] == 2 * 64
    assert output.usage.media_tokens["video"] == 2 * 64


def test_a_bad_prompt_names_its_index_and_the_engine_goes_on(llm):
    message = {"role": "user", "content": [{"type": "image", "image": "no-such.png"}]}
    good = [{"role": "user", "content": "hi"}]
    with pytest.raises(MediaError, match=r"prompt 1: messages\[0\]\.content\[0\]\.image: cannot read 'no-such.png'"):
        llm.chat([good, [message], good], GREEDY)
    assert llm.chat(good, GREEDY)[0].finished
    assert llm.client.num_requests == 0


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        ([{"type": "image", "image": np.zeros((4, 4))}], MediaError, "uint8"),
        ([{"type": "image", "image": object()}], MediaError, "object"),
        ([{"type": "audio", "audio": np.array(["a"])}], MediaError, "content"),
        ([{"type": "video", "video": []}], MediaError, "at least one frame"),
        ([{"type": "video", "video": ([PIXELS], 0)}], MediaError, "frames per second"),
        ([{"type": "input_audio", "input_audio": {"data": "??"}}], MediaError, "base64"),
        ([{"type": "image_url", "image_url": {}}], RequestError, "no url"),
        ([{"type": "image_url", "image_url": "http://127.0.0.1/a.png"}], MediaFetchError, "not allowed"),
        ([{"type": "hologram"}], RequestError, "'hologram'"),
        ([{"type": ["text"]}], RequestError, "has type"),
        ([{"type": "text", "text": 5}], RequestError, "must be a string"),
        ([3], RequestError, "has type None"),
        (5, RequestError, "content"),
        ("long " * 5000, ContextLengthError, "context"),
    ],
)
def test_what_cannot_be_used_is_refused(llm, content, error, words):
    with pytest.raises(error, match=words):
        llm.chat([{"role": "user", "content": content}], GREEDY)


def test_unknown_names_are_refused(llm):
    with pytest.raises(TypeError, match="'max_modl_len'; did you mean 'max_model_len'"):
        LLM(max_modl_len=5)
    with pytest.raises(RequestError, match="'images'"):
        llm.generate({"prompt": "a", "multi_modal_data": {"images": PIXELS}})
    with pytest.raises(RequestError, match="'text'"):
        llm.generate({"text": "a"})
    with pytest.raises(RequestError, match="'robot'"):
        llm.chat([{"role": "robot", "content": "a"}])


def test_it_sleeps_and_wakes_up(any_model):
    options = {"max_model_len": 512, "max_num_seqs": 2, "kv_cache_bytes": 8 << 20}
    with LLM(str(any_model), enable_sleep_mode=True, **options) as llm:
        before = ask(llm, "Hello")
        for level, mode, named in ((0, "abort", "level"), (3, "abort", "level"), (1, "keep", "mode")):
            with pytest.raises(RequestError, match=named):
                llm.sleep(level, mode)
        llm.sleep(level=2)
        assert llm.is_sleeping
        with pytest.raises(SensoriumError, match="closed"):
            ask(llm, "Hello")
        with pytest.raises(RequestError, match="tags"):
            llm.wake_up(tags=["nothing"])
        llm.wake_up(tags=["weights"])
        assert ask(llm, "Hello") == before


def test_closing_leaves_no_thread(any_model):
    before = set(threading.enumerate())
    with LLM(str(any_model), kv_cache_bytes=1 << 20) as llm:
        llm.generate("a", GREEDY, use_tqdm=False)  # the progress bar's own thread ends when it likes
        assert set(threading.enumerate()) - before
    assert not set(threading.enumerate()) - before
    with pytest.raises(SensoriumError, match="closed"):
        llm.generate("a", GREEDY)


def test_messages_keep_places_and_further_fields():
    (message,) = read_messages([{"role": "assistant", "content": None, "tool_calls": [1]}])
    assert message.parts == ("",)
    assert message.extra == {"tool_calls": [1]}
    assert read_media("image", b"x", "here") == MediaRef("image", b"x", "here")
