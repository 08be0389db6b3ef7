"""The openai SDK on every path: whole and streamed answers, pictures, sounds, videos, errors, leaving early."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from server import samples
from server.live import Live, cut_short, eventually, user

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 12, "extra_body": {"ignore_eos": True}}
QUESTION = user("What is that?")


@pytest.fixture(scope="module")
def sdk(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def image_part(data: bytes = b"", **extra: Any) -> dict[str, Any]:
    return {
        "type": "image_url",
        "image_url": {"url": samples.data_url("image/png", data or samples.picture()), **extra},
    }


MEDIA: dict[str, dict[str, Any]] = {
    "image": image_part(),
    "audio": {
        "type": "input_audio",
        "input_audio": {"data": samples.data_url("", samples.sound())[13:], "format": "wav"},
    },
    "audio by URL": {"type": "audio_url", "audio_url": {"url": samples.data_url("audio/wav", samples.sound())}},
    "video": {"type": "video_url", "video_url": {"url": samples.data_url("video/mp4", samples.video())}},
}


def test_an_answer_comes_whole_with_its_usage(sdk: openai.OpenAI):
    completion = sdk.chat.completions.create(messages=QUESTION, **GREEDY)
    [choice] = completion.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert completion.id.startswith("chatcmpl-")
    assert completion.model == "tiny"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 12
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 12


def test_a_streamed_answer_is_the_whole_one_in_pieces(sdk: openai.OpenAI):
    whole = sdk.chat.completions.create(messages=QUESTION, **GREEDY).choices[0].message.content
    options: Any = {"include_usage": True}
    chunks = list(sdk.chat.completions.create(messages=QUESTION, stream=True, stream_options=options, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_may_come_with_every_chunk(sdk: openai.OpenAI):
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(sdk.chat.completions.create(messages=QUESTION, stream=True, stream_options=options, **GREEDY))
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[-1] == 12


@pytest.mark.parametrize("name", MEDIA)
def test_media_reach_the_model_and_are_counted(sdk: openai.OpenAI, live: Live, name: str):
    part = MEDIA[name]
    modality = part["type"].removesuffix("_url").removeprefix("input_")
    if modality not in live.engine.modalities:
        pytest.skip(f"the model takes no {modality}")
    messages = user([part, {"type": "text", "text": "What is that?"}])
    completion = sdk.chat.completions.create(messages=messages, **GREEDY)
    assert completion.choices[0].message.content
    details = completion.model_dump()["usage"]["prompt_tokens_details"]
    assert details["image_tokens"] + details["audio_tokens"] + details["video_tokens"] > 0
    streamed = sdk.chat.completions.create(messages=messages, stream=True, **GREEDY)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == completion.choices[0].message.content


def test_another_picture_gives_another_prompt_and_low_detail_a_shorter_one(sdk: openai.OpenAI):
    large = samples.picture(1000, 700)
    counts = {}
    for detail in ("auto", "low"):
        completion = sdk.chat.completions.create(messages=user([image_part(large, detail=detail), "?"]), **GREEDY)
        assert completion.usage is not None
        counts[detail] = completion.usage.prompt_tokens
    assert counts["low"] < counts["auto"]


def test_several_choices_share_one_prompt(sdk: openai.OpenAI):
    sampled = {**GREEDY, "temperature": 1.5}
    first = sdk.chat.completions.create(messages=QUESTION, n=3, seed=7, **sampled)
    again = sdk.chat.completions.create(messages=QUESTION, n=3, seed=7, stream=True, **sampled)
    texts = [choice.message.content for choice in first.choices]
    streamed = ["", "", ""]
    for chunk in again:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts
    assert len(set(texts)) > 1
    assert first.usage is not None
    assert first.usage.completion_tokens == 36


def test_log_probabilities_name_each_token(sdk: openai.OpenAI):
    completion = sdk.chat.completions.create(messages=QUESTION, logprobs=True, top_logprobs=3, **GREEDY)
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 12
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0  # greedy takes the likeliest


def test_stop_strings_end_the_answer_before_them(sdk: openai.OpenAI):
    text = sdk.chat.completions.create(messages=QUESTION, **GREEDY).choices[0].message.content or ""
    stop = text[4:6]
    completion = sdk.chat.completions.create(messages=QUESTION, stop=stop, **GREEDY)
    assert completion.choices[0].finish_reason == "stop"
    assert completion.choices[0].message.content == text[: text.index(stop)]
    assert completion.choices[0].model_dump()["stop_reason"] == stop


def test_a_reply_can_be_sent_back_as_it_came(sdk: openai.OpenAI):
    reply = sdk.chat.completions.create(messages=QUESTION, **GREEDY).choices[0].message
    messages: Any = [*QUESTION, reply.model_dump(), *user("And why?")]
    assert sdk.chat.completions.create(messages=messages, **GREEDY).choices[0].message.content


def test_metadata_comes_back(sdk: openai.OpenAI):
    completion = sdk.chat.completions.create(messages=QUESTION, metadata={"case": "7"}, user="someone", **GREEDY)
    assert completion.model_dump()["metadata"] == {"case": "7"}


def test_models_are_listed_and_found(sdk: openai.OpenAI):
    [model] = sdk.models.list().data
    assert model.id == "tiny"
    assert sdk.models.retrieve("tiny").model_dump()["max_model_len"] == 2048
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("another/model")


def test_errors_have_the_types_that_the_sdk_knows(sdk: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as wrong_model:
        sdk.chat.completions.create(messages=QUESTION, model="gpt")
    assert wrong_model.value.param == "model"
    with pytest.raises(openai.BadRequestError) as too_long:
        sdk.chat.completions.create(messages=user("word " * 4000), model="tiny")
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as broken:
        sdk.chat.completions.create(messages=user(["?", image_part(samples.picture()[:60])]), model="tiny")
    assert broken.value.code == "invalid_media"
    assert broken.value.param == "messages[0].content[1].image_url"


def test_leaving_a_stream_ends_the_work(sdk: openai.OpenAI, live: Live):
    long = {**GREEDY, "max_tokens": 1500}
    with cut_short(live.engine), sdk.chat.completions.create(messages=QUESTION, stream=True, **long) as stream:
        next(iter(stream))
        assert live.engine.num_requests == 1


def test_leaving_before_a_whole_answer_ends_the_work(live: Live):
    impatient = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=0.3)
    with cut_short(live.engine), impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(messages=QUESTION, **{**GREEDY, "max_tokens": 1500})


def test_a_full_server_says_so_and_recovers(sdk: openai.OpenAI, live: Live):
    room = live.engine.config.max_num_seqs + live.engine.config.max_waiting
    long = {**GREEDY, "max_tokens": 1500}
    streams = [sdk.chat.completions.create(messages=QUESTION, stream=True, **long) for _ in range(room)]
    assert eventually(lambda: live.engine.num_requests == room)
    with pytest.raises(openai.RateLimitError) as full:
        sdk.chat.completions.create(messages=QUESTION, **GREEDY)
    assert int(full.value.response.headers["retry-after"]) >= 1
    for stream in streams:
        stream.close()
    assert eventually(lambda: live.engine.num_requests == 0)
    assert sdk.chat.completions.create(messages=QUESTION, **GREEDY).choices[0].message.content


def test_concurrent_streams_equal_their_solo_runs(sdk: openai.OpenAI):
    questions = [user([image_part(samples.picture(seed=seed)), f"Question {seed}"]) for seed in range(6)]
    solo = [
        sdk.chat.completions.create(messages=question, **GREEDY).choices[0].message.content for question in questions
    ]
    together: list[str] = [""] * len(questions)

    def run(index: int) -> None:
        for chunk in sdk.chat.completions.create(messages=questions[index], stream=True, **GREEDY):
            together[index] += chunk.choices[0].delta.content or ""

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == solo
