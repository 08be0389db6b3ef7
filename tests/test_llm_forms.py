"""What LLM takes besides plain text: media and their ids, several answers, beams, later answers, embeddings."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium import LLM, BeamSearchParams, PoolingParams, SamplingParams
from sensorium.errors import ConfigError, RequestError
from sensorium.live_media import read_items
from sensorium.messages import read_messages
from sensorium.types import Embeds, Media, MediaRef

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
OTHER = PIXELS[::-1].copy()


@pytest.fixture(scope="module")
def llm(any_model):
    with LLM(str(any_model), max_model_len=1024, max_num_seqs=4, max_waiting=8, kv_cache_bytes=32 << 20) as made:
        yield made


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


# ---- one or many --------------------------------------------------------------------------------------------------


def pictures(value):
    return [item.data.shape for item in read_items("image", value)]


def test_pictures_alone_in_lists_and_in_batches():
    pil = Image.fromarray(PIXELS)
    assert pictures(pil) == pictures(PIXELS) == pictures(PIXELS.transpose(2, 0, 1)) == [(60, 80, 3)]
    assert pictures([pil, PIXELS]) == pictures(np.stack([PIXELS, OTHER])) == [(60, 80, 3)] * 2
    batch = torch.from_numpy(np.stack([PIXELS, OTHER])).permute(0, 3, 1, 2)
    assert pictures(batch) == pictures(batch.float()) == pictures(batch / 255) == [(60, 80, 3)] * 2
    one, other = read_items("image", batch.float() / 255)
    assert np.array_equal(one.data, PIXELS)
    assert one.digest != other.digest


def videos(value):
    return [(item.data.shape, item.times_s.tolist()) for item in read_items("video", value)]


def test_frames_are_one_video_and_lists_of_them_several():
    frames, seconds = np.stack([PIXELS, OTHER]), [0.0, 1 / 24]
    one = [((2, 60, 80, 3), seconds)]
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    for form in (list(frames), frames, tensor, [Image.fromarray(frame) for frame in frames]):
        assert videos(form) == one
        assert videos([form, form]) == one * 2
    assert videos([tensor]) == one
    assert videos((frames, 2))[0][1] == [0, 0.5]
    sampled = {"fps": 10, "frames_indices": [5, 25], "total_num_frames": 30, "duration": 3.0, "do_sample_frames": False}
    assert videos((frames, sampled))[0][1] == [0, 2]
    assert len(videos([(frames, {}), (frames, sampled)])) == 2
    wrong = [({"fsp": 1}, "'fsp'"), ({"fps": 0}, "0.0 frames"), ({"frames_indices": [3, 1]}, "ascending")]
    for metadata, words in [*wrong, ({"do_sample_frames": True}, "do_sample_frames")]:
        with pytest.raises(RequestError, match=words):
            videos((frames, metadata))


def recordings(value):
    return [len(item.data) for item in read_items("audio", value)]


def test_recordings_alone_with_their_rate_and_in_lists():
    samples = np.sin(np.arange(16_000) / 20).astype(np.float32)
    for one in (samples, samples.tolist(), (samples, 16_000), torch.from_numpy(samples), np.float64(samples)):
        assert recordings(one) == [16_000]
    assert recordings([samples, (samples[:8000], 8000)]) == [16_000, 16_000]
    assert recordings(np.stack([samples, samples])) == [16_000, 16_000]  # without a rate: mono clips
    for layout in (np.stack([samples, samples * 3]), np.stack([samples, samples * 3], axis=1)):
        (mono,) = read_items("audio", (layout, 16_000))
        assert np.allclose(mono.data, samples * 2, atol=1e-6)
    (bytes_,) = read_items("audio", ((samples * 127 + 128).astype(np.uint8), 16_000))
    assert np.abs(bytes_.data - samples).max() < 0.02
    with pytest.raises(RequestError, match=r"unsupported audio shape \[1, 2, 3\]"):
        read_items("audio", (np.zeros((1, 2, 3)), 16_000))


def rows(value, modality="image"):
    return [
        (item.modality, {name: list(tensor.shape) for name, tensor in item.tensors.items()})
        for item in read_items(modality, value)
    ]


ROWS = np.stack([np.full(16_000, 1.0), np.full(16_000, 3.0)]).astype(np.float32)
NOISE = np.random.default_rng(3).standard_normal((2, 22_050)).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "rate", "mono"),
    [
        (ROWS, 16_000, np.full(16_000, 2.0)),
        (ROWS.T, 16_000, np.full(16_000, 2.0)),
        (ROWS[:1], 16_000, ROWS[0]),
        (ROWS[:1].T, 16_000, ROWS[0]),
        (NOISE[:, :2], 16_000, NOISE[:, :2].mean(axis=0)),
        (torch.from_numpy(ROWS), 16_000, np.full(16_000, 2.0)),
        (torch.tensor([[-32768, 16384], [-32768, 0]], dtype=torch.int16), 16_000, [-1.0, 0.25]),
        (np.array([0, 128, 192], dtype=np.uint8), 16_000, [-1.0, 0.0, 0.5]),
        (np.array([-(2**31), 2**30], dtype=np.int32), 16_000, [-1.0, 0.5]),
    ],
)
def test_channels_become_one(samples, rate, mono):
    (item,) = read_items("audio", (samples, rate))
    np.testing.assert_allclose(item.data, np.asarray(mono, dtype=np.float32), atol=1e-6)


def test_channels_become_one_before_the_rate_changes():
    (wanted,) = read_items("audio", (NOISE.mean(axis=0), 44_100))
    assert len(wanted.data) == 8_000
    for form in (NOISE, NOISE.T, torch.from_numpy(NOISE)):
        (item,) = read_items("audio", (form, 44_100))
        np.testing.assert_allclose(item.data, wanted.data, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((np.float32(1.0), 16_000), "audio"),
        ((np.zeros((2, 2, 2), np.float32), 16_000), "unsupported audio shape"),
        ((np.zeros(0, np.float32), 16_000), "no samples"),
        ((np.array([0.0, np.nan], np.float32), 16_000), "finite"),
        ((np.array([0.0, np.inf], np.float32), 8_000), "finite"),
        ((np.zeros(9, np.float32), float("inf")), "infinity"),
        ((np.zeros(9, np.float32), 1), "samples per second"),
        ((np.zeros(9, np.complex64), 16_000), "floats or signed integers"),
    ],
)
def test_what_is_no_recording(value, words):
    with pytest.raises(ValueError, match=words):
        read_items("audio", value)


def test_tensors_are_embeddings():
    whole = torch.randn(2, 4, 8)
    each = [("image", {"image_embeds": [4, 8]})] * 2
    assert rows(whole) == rows(list(whole)) == rows({"image_embeds": whole.to(torch.bfloat16)}) == each
    assert rows(whole, "audio") == [("audio", {"audio_embeds": [4, 8]})] * 2
    grid = {"image_embeds": torch.randn(14, 8), "image_grid_thw": torch.tensor([[1, 4, 6], [1, 4, 8]])}
    assert [shapes["image_embeds"] for _, shapes in rows(grid)] == [[6, 8], [8, 8]]
    sized = {"image_embeds": [torch.randn(3, 8), torch.randn(5, 8)], "image_sizes": [(4, 5), (6, 7)]}
    assert [item.tensors["image_sizes"].tolist() for item in read_items("image", sized)] == [[4, 5], [6, 7]]
    one = {"image_embeds": torch.randn(6, 8), "image_grid_thw": torch.tensor([1, 4, 6])}
    assert rows(one) == [("image", {"image_embeds": [6, 8], "image_grid_thw": [3]})]
    for wrong in (
        {"image_embeds": torch.randn(13, 8), "image_grid_thw": torch.tensor([[1, 4, 6], [1, 4, 8]])},
        {"image_embeds": [torch.randn(3, 8)], "image_sizes": [(4, 5), (6, 7)]},
        {"image_grid_thw": torch.tensor([[1, 4, 6]])},
        {"image_embeds": torch.randn(8)},
    ):
        with pytest.raises(RequestError):
            read_items("image", wrong)


def test_equal_embeddings_are_known_again():
    first, same, other = (
        read_items("image", value)[0] for value in (torch.ones(1, 4, 8), torch.ones(1, 4, 8), torch.ones(1, 8, 4))
    )
    assert first.digest == same.digest != other.digest


# ---- ids of media ---------------------------------------------------------------------------------------------------


def test_uuids_one_or_one_each():
    named = read_items("image", [PIXELS, None, OTHER], ["a", 5, None], "here")
    assert [item.uuid for item in named] == ["a", "5", None]
    assert [type(item) for item in named] == [Media, MediaRef, Media]
    assert (named[1].source, named[1].part) == (None, "here[1]")
    assert read_items("image", PIXELS, "a")[0].uuid == "a"
    with pytest.raises(RequestError, match=r"here\[1\] is None and has no uuid"):
        read_items("image", [PIXELS, None], ["a", None], "here")
    with pytest.raises(RequestError, match="1 ids for 2 items"):
        read_items("image", [PIXELS, OTHER], "a")


@pytest.mark.parametrize(
    ("data", "uuids", "words"),
    [
        ({"image": PIXELS}, {}, r"multi_modal_uuids\['image'\] is missing"),
        ({"image": [None]}, {}, r"multi_modal_data\['image'\] is empty but multi_modal_uuids\['image'\] is missing"),
        ({"image": PIXELS}, {"image": "a", "audio": "b"}, "has 'audio'"),
        ({"images": PIXELS}, None, "write 'image'"),
        ({"hologram": PIXELS}, None, "use image, audio, video"),
    ],
)
def test_uuids_must_match_the_media(llm, data, uuids, words):
    prompt = {"prompt": "<image>./</image>", "multi_modal_data": data, "multi_modal_uuids": uuids}
    with pytest.raises(ValueError, match=words):
        llm.generate(prompt)


def test_a_picture_is_sent_once(llm):
    prompt = {"prompt": "<image>./</image> What?", "multi_modal_uuids": {"image": "seen"}}
    first = llm.generate({**prompt, "multi_modal_data": {"image": PIXELS}}, GREEDY)
    assert tokens(llm.generate({**prompt, "multi_modal_data": {"image": None}}, GREEDY)) == tokens(first)
    content = [{"type": "image_pil", "image_pil": None, "uuid": "seen"}, {"type": "text", "text": "What?"}]
    assert llm.chat([{"role": "user", "content": content}], GREEDY)[0].finished
    with pytest.raises(ValueError, match="Cache miss"):
        llm.generate({**prompt, "multi_modal_data": {"image": None}, "cache_salt": "another user"}, GREEDY)
    llm.reset_mm_cache()
    with pytest.raises(ValueError, match=r"Cache miss for image at index 0.*'seen'"):
        llm.generate({**prompt, "multi_modal_data": {"image": None}}, GREEDY)


# ---- messages -------------------------------------------------------------------------------------------------------


def test_parts_of_every_kind():
    content = [
        "plain",
        {"type": "input_text", "input_text": "named"},
        {"type": "refusal", "refusal": None},
        {"image_url": "https://example.com/a.png", "uuid": 7},
        {"type": "input_image", "input_image": "data:image/png;base64,AAAA"},
        {"type": "image_embeds", "image_embeds": torch.ones(1, 2, 3)},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"type": "audio_url", "audio_url": None, "uuid": "a"},
        {"type": "image", "image": "https://example.com/b.png"},
    ]
    (message,) = read_messages([{"role": "developer", "content": content}])
    assert message.role == "system"
    plain, named, linked, inline, rows, encoded, known, file = message.parts
    assert (plain, named) == ("plain", "named")
    assert (linked.source, linked.uuid) == ("https://example.com/a.png", "7")
    assert inline.modality == "image"
    assert isinstance(rows, Embeds)
    assert (encoded.form, encoded.source) == ("embeds", "AAAA")
    assert (known.source, known.uuid, known.modality) == (None, "a", "audio")
    assert file.source == "https://example.com/b.png"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": None}, "no uuid"),
        ({"type": "image_pil", "image_pil": PIXELS, "colour": 1}, "'colour', which does nothing"),
        ({"type": "prompt_embeds", "prompt_embeds": {}}, "prompt_embeds is not supported"),
        ({"type": "image_embeds", "image_embeds": torch.ones(2, 2, 3)}, "2 items"),
    ],
)
def test_parts_that_are_refused(part, words):
    with pytest.raises(ValueError, match=words):
        read_messages([{"role": "user", "content": [part]}])


# ---- answers --------------------------------------------------------------------------------------------------------


def test_several_answers_to_a_prompt(llm):
    warm = SamplingParams(n=3, temperature=1.5, seed=1, max_tokens=8, ignore_eos=True)
    (output,) = llm.generate("Hello", warm)
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 3
    for index, answer in enumerate(output.outputs):
        alone = SamplingParams(temperature=1.5, seed=1 + index, max_tokens=8, ignore_eos=True)
        assert llm.generate("Hello", alone)[0].outputs[0].token_ids == answer.token_ids
    assert [len(found.outputs) for found in llm.generate(["a", "b", "c", "d", "e"], warm)] == [3] * 5


def test_prompt_logprobs(llm):
    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    (output,) = llm.generate("Hello there, you", sampling)
    first, *others = output.prompt_logprobs
    assert first is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token, position in zip(output.prompt_token_ids[1:], others, strict=True):
        assert next(iter(position)) == token
        assert position[token].rank >= 1


def test_cached_tokens_are_counted_until_the_cache_is_reset(llm):
    text = "something that is long enough to fill several blocks of the cache " * 3
    first, again = (llm.generate(text, GREEDY)[0] for _ in range(2))
    assert again.num_cached_tokens > first.num_cached_tokens
    assert again.num_cached_tokens + again.num_cache_creation_tokens == len(again.prompt_token_ids)
    assert llm.reset_prefix_cache()
    assert llm.generate(text, GREEDY)[0].num_cached_tokens == 0


def test_beams(llm):
    prompt = {"prompt": "<image>./</image>", "multi_modal_data": {"image": PIXELS}}
    (output,) = llm.beam_search(prompt, BeamSearchParams(beam_width=3, max_tokens=4))
    scores = [sequence.score for sequence in output.sequences]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    greedy = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=4, logprobs=0))[0]
    best = llm.beam_search("Hello", BeamSearchParams(beam_width=4, max_tokens=4, ignore_eos=True))[0].sequences[0]
    assert best.cum_logprob >= greedy.outputs[0].cumulative_logprob - 1e-4
    assert best.tokens[: len(greedy.prompt_token_ids)] == greedy.prompt_token_ids


def test_answers_can_be_fetched_later(llm):
    ids = llm.enqueue(["a", "b"], GREEDY) + llm.enqueue_chat([{"role": "user", "content": "c"}], GREEDY)
    outputs = llm.wait_for_completion()
    assert [output.request_id for output in outputs] == ids
    assert tokens(outputs[:2]) == tokens(llm.generate(["a", "b"], GREEDY))
    assert llm.wait_for_completion() == []


def test_progress_is_shown_as_asked(llm, capsys):
    made = []

    class Bar:
        def __init__(self, **options):
            self.desc, self.total, self.count = options["desc"], options["total"], 0
            made.append(self)

        def update(self, count):
            self.count += count

        def close(self):
            self.closed = True

    llm.generate(["a", "b", "c"], GREEDY, use_tqdm=Bar)
    assert [(bar.desc, bar.count, bar.total) for bar in made] == [
        ("Rendering prompts", 3, 3),
        ("Processed prompts", 3, 3),
    ]
    assert all(bar.closed for bar in made)
    assert "output: " in made[1].postfix
    capsys.readouterr()
    llm.generate("a", GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_the_tokenizer_speaks_the_models_language(llm):
    tokenizer = llm.get_tokenizer()
    conversation = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)
    assert llm.generate(text, GREEDY)[0].prompt_token_ids == ids
    assert tokenizer.decode(tokenizer.encode("Hi there")) == "Hi there"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.encode("<|im_end|>")[0]


def test_embeddings_and_scores(any_model):
    with LLM(str(any_model), runner="pooling", max_model_len=512, kv_cache_bytes=8 << 20) as llm:
        one, other = llm.embed(["a cat", "a dog"])
        assert np.linalg.norm(one.outputs.embedding) == pytest.approx(1, abs=1e-4)
        assert one.outputs.hidden_size == len(other.outputs.embedding)
        (each,) = llm.encode("a cat")
        assert each.outputs.data.shape == (len(each.prompt_token_ids), one.outputs.hidden_size)
        (whole,) = llm.encode("a cat", PoolingParams(task="embed", normalize=False))
        assert whole.outputs.data.shape == (one.outputs.hidden_size,)
        same, different = llm.score("a cat", ["a cat", "a dog"])
        assert same.outputs.score == pytest.approx(1, abs=1e-5)
        assert different.outputs.score == pytest.approx(
            np.dot(one.outputs.embedding, other.outputs.embedding), abs=1e-4
        )
        picture = {"content": [{"type": "image", "image": PIXELS}]}
        assert -1 <= llm.score(picture, "a cat")[0].outputs.score < 1
        with pytest.raises(ValueError, match="2 and 3"):
            llm.score(["a", "b"], ["c", "d", "e"])
        with pytest.raises(ValueError, match="embeddings"):
            llm.generate("a")


# ---- the object -----------------------------------------------------------------------------------------------------


def test_deleting_it_frees_the_engine(any_model):
    llm = LLM(str(any_model), kv_cache_bytes=1 << 20)
    client, model = llm.client, weakref.ref(llm.client.loaded.model)
    llm.generate("a", GREEDY, use_tqdm=False)
    gc.disable()  # memory is free at once, and not when the collector comes by
    try:
        del llm
        assert not client.is_alive
        del client
        assert model() is None
    finally:
        gc.enable()


def test_keywords_of_vllm(any_model, caplog):
    model = str(any_model)
    given = {
        "kv_cache_memory_bytes": 1 << 20,
        "tensor_parallel_size": 1,
        "swap_space": 4,
        "compilation_config": 3,
        "task": "generate",
        "disable_mm_preprocessor_cache": True,
        "dtype": torch.float32,
        "allowed_media_domains": ["example.com"],
        "trust_remote_code": True,
        "quantization": None,
    }
    with LLM(model, **given) as llm:
        config = llm.client.config
    assert (config.kv_cache_bytes, config.mm_processor_cache_gb, config.dtype, config.runner) == (
        1 << 20,
        0,
        "float32",
        "generate",
    )
    assert config.limits.allowed_domains == ("example.com",)
    for name in ("swap_space", "compilation_config", "task", "disable_mm_preprocessor_cache"):
        assert sum(name in record.message for record in caplog.records) == 1
    for name, value in (("tensor_parallel_size", 2), ("quantization", "awq"), ("gpu_memory_utilization", 1.5)):
        with pytest.raises(ConfigError, match=name):
            LLM(model, **{name: value})
    assert issubclass(ConfigError, ValueError)


def test_methods_that_are_not_there_say_what_to_do(llm):
    with pytest.raises(AttributeError, match=r"LLM has no start_profile: profile the process"):
        llm.start_profile()
    with pytest.raises(RequestError, match="enable_sleep_mode"):
        llm.sleep(1)
    assert not hasattr(llm, "apply_model")
    with pytest.raises(RequestError, match="lora_request"):
        llm.generate("a", lora_request=object())
