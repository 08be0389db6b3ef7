"""Fields and content parts of chat requests, one by one, through a live server."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from server import samples
from server.bodies import PNG_URL, chat, image_part
from server.live import Live, serve, user

from sensorium.engine.client import EngineClient

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}


def ask(live: Live, **fields: Any) -> dict[str, Any]:
    status, answer = live.post(chat(**{**GREEDY, **fields}))
    assert status == 200, answer
    return answer


def prompt_of(live: Live, content: Any = "hi", **fields: Any) -> str:
    messages = fields.pop("messages", user(content))
    return ask(live, messages=messages, return_prompt_text=True, max_tokens=1, **fields)["prompt_text"]


def stream(live: Live, **fields: Any) -> list[dict[str, Any]]:
    body = json.dumps(chat(**{**GREEDY, **fields}, stream=True)).encode()
    _, _, answer = live.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    frames = answer.decode().split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame[6:]) for frame in frames[:-2]]


# ---- parts ----

IMAGE = {"type": "image_url", "image_url": {"url": PNG_URL}}
PICTURES: dict[str, Any] = {
    "a URL in place of an object": {"type": "image_url", "image_url": PNG_URL},
    "no type": {"image_url": {"url": PNG_URL}},
    "no type, a bare URL": {"image_url": PNG_URL},
    "with a uuid": {**IMAGE, "uuid": "sku-1"},
    "with a number as uuid": {**IMAGE, "uuid": 7},
    "input_image": {"type": "input_image", "image_url": PNG_URL, "detail": "auto"},
    "input_image with its own key": {"type": "input_image", "input_image": PNG_URL},
    "as Hugging Face writes it": {"type": "image", "image": PNG_URL},
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_written_in_many_ways(live: Live, name: str):
    usual = ask(live, messages=user([IMAGE, "What is that?"]))
    answer = ask(live, messages=user([PICTURES[name], "What is that?"]))
    assert answer["choices"][0]["message"] == usual["choices"][0]["message"]
    assert answer["usage"]["prompt_tokens"] == usual["usage"]["prompt_tokens"]


def test_an_item_is_sent_once_and_then_named(live: Live):
    first = ask(live, messages=user([{**IMAGE, "uuid": "named-1"}, "What?"]))
    for part in (
        {"type": "image_url", "image_url": None, "uuid": "named-1"},
        {"type": "image_url", "image_url": {"url": None}, "uuid": "named-1"},
        {"type": "image_pil", "image_pil": None, "uuid": "named-1"},
    ):
        again = ask(live, messages=user([part, "What?"]))
        assert again["choices"][0]["message"] == first["choices"][0]["message"]
    status, answer = live.post(chat(messages=user([{"type": "image_url", "image_url": None, "uuid": "never"}, "?"])))
    assert (status, answer["error"]["code"]) == (400, "mm_cache_miss")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "hi"},
        {"type": "input_text", "text": "hi"},
        {"type": "output_text", "text": "hi", "annotations": []},
        {"type": "thinking", "thinking": "hi", "signature": "x"},
        {"type": "refusal", "refusal": "hi"},
        {"text": "hi"},
        {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
        "hi",
    ],
)
def test_texts_are_written_in_many_ways(live: Live, part: Any):
    usual = prompt_of(live)
    assert prompt_of(live, [part]) == usual
    if not isinstance(part, str):
        assert prompt_of(live, part) == usual
    assert prompt_of(live, [{"type": "text", "text": None}, part]) == usual


REFUSED: dict[str, tuple[Any, str, str]] = {
    "unknown type": ({"type": "imge_url"}, ".type", "part type 'imge_url'; did you mean image_url?"),
    "null without uuid": ({"type": "image_url", "image_url": None}, ".image_url", "uuid"),
    "a number": (5, "", "must be a part"),
    "audio without data": ({"type": "input_audio", "input_audio": {}}, ".input_audio.data", "required"),
    "an object": ({"type": "image_pil", "image_pil": "x"}, ".image_pil", "cannot be sent"),
    "embeddings in a list": ({"type": "image_embeds", "image_embeds": [1]}, ".image_embeds", "base64"),
    "embeddings without anything": ({"type": "image_embeds", "image_embeds": {}}, ".image_embeds", "no tensor"),
    "a uuid of 3,000 characters": ({**IMAGE, "uuid": "a" * 3000}, ".uuid", "2048"),
    "a uuid in a list": ({**IMAGE, "uuid": []}, ".uuid", "text"),
    "a misspelt key": ({**IMAGE, "uid": "a"}, ".uid", "did you mean uuid"),
    "a misspelt key inside": ({"type": "image_url", "image_url": {"ulr": "x"}}, ".image_url.ulr", "unknown"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_parts_that_are_wrong_are_named(live: Live, name: str):
    part, where, words = REFUSED[name]
    status, answer = live.post(chat(messages=user([part])))
    assert status == 400
    assert answer["error"]["param"] == f"messages[0].content[0]{where}"
    assert words in answer["error"]["message"]


# ---- the prompt ----


def test_order_of_media_in_the_prompt(live: Live, engine: EngineClient):
    picture, mark = image_part(PNG_URL), "<image>./</image>"
    assert f"{mark}\nA\n" not in prompt_of(live, ["A", picture])
    found = prompt_of(live, ["A", picture])
    assert found.index(mark) < found.index("\nA")
    found = prompt_of(live, ["A", picture, "B"])
    assert found.index("A") < found.index(mark) < found.index("B")
    with serve(engine, served_model_name="tiny", interleave_mm_strings=True) as kept:
        found = prompt_of(kept, ["A", picture])
        assert found.index("A") < found.index(mark)


def test_the_operators_template_and_its_variables(engine: EngineClient):
    template = "{{ greeting }}{% for m in messages %}{{ m.content }}{% endfor %}{{ tail }}"
    settings: Any = {"chat_template": template, "default_chat_template_kwargs": {"greeting": "Dear ", "tail": "."}}
    with serve(engine, **settings) as server:
        assert prompt_of(server) == "Dear hi."
        assert prompt_of(server, chat_template_kwargs={"tail": "!"}) == "Dear hi!"


def test_a_template_of_the_request_needs_trust(live: Live, engine: EngineClient):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}?"
    status, answer = live.post(chat(chat_template=template))
    assert status == 400
    assert "--trust-request-chat-template" in answer["error"]["message"]
    with serve(engine, trust_request_chat_template=True) as server:
        assert prompt_of(server, chat_template=template) == "hi?"
        assert prompt_of(server, chat_template="{{ documents[0].title }}", documents=[{"title": "T"}]) == "T"


def test_a_message_is_continued_and_echoed(live: Live):
    messages = [*user("Count."), {"role": "assistant", "content": "One, two"}]
    fields: dict[str, Any] = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}
    plain = ask(live, **fields)["choices"][0]["message"]["content"]
    assert ask(live, **fields, echo=True)["choices"][0]["message"]["content"] == "One, two" + plain
    assert prompt_of(live, **fields).endswith("One, two")
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in stream(live, **fields, echo=True)]
    assert "".join(pieces) == "One, two" + plain
    status, answer = live.post(
        chat(messages=[*user("x"), {"role": "assistant", "content": ""}], continue_final_message=True)
    )
    assert (status, answer["error"]["param"]) == (400, "continue_final_message")


def test_prompts_are_cut_at_the_side_asked_for(live: Live):
    whole = ask(live, return_token_ids=True, max_tokens=1)["prompt_token_ids"]
    for fields, kept in (
        ({"truncate_prompt_tokens": 3}, whole[-3:]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, whole[:3]),
        ({"truncate_prompt_tokens": -1}, whole),
    ):
        assert ask(live, **fields, return_token_ids=True, max_tokens=1)["prompt_token_ids"] == kept
    long = ask(live, messages=user("word " * 6000), truncate_prompt_tokens=-1, max_tokens=4)
    assert long["usage"]["prompt_tokens"] == live.engine.max_model_len - 4


# ---- the answer ----


def test_an_answer_has_every_field(live: Live):
    answer = ask(live, service_tier="auto", metadata={"a": "b"})
    assert set(answer) == {
        "id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage", "prompt_logprobs",
        "prompt_token_ids", "kv_transfer_params", "metadata",
    }  # fmt: skip
    assert answer["service_tier"] == "auto"
    [choice] = answer["choices"]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids"}
    assert set(choice["message"]) == {
        "role", "content", "refusal", "annotations", "audio", "function_call", "reasoning", "reasoning_content",
    }  # fmt: skip
    details = ask(live, messages=user([IMAGE, "?"]))["usage"]["prompt_tokens_details"]
    assert details["image_tokens"] == details["multimodal_tokens"]["image"] > 0
    assert details["cache_write_tokens"] == details["created_cache_tokens"]


def test_token_ids_come_whole_and_in_pieces(live: Live):
    answer = ask(live, return_token_ids=True)
    ids = answer["choices"][0]["token_ids"]
    assert len(ids) == 6
    chunks = stream(live, return_token_ids=True)
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    assert [i for chunk in chunks for choice in chunk["choices"] for i in choice.get("token_ids", [])] == ids


def test_log_probabilities_by_id_and_of_the_prompt(live: Live):
    answer = ask(
        live, logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True, return_token_ids=True, prompt_logprobs=1
    )
    [choice] = answer["choices"]
    tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
    assert tokens == [f"token_id:{token}" for token in choice["token_ids"]]
    scored = answer["prompt_logprobs"]
    assert scored[0] is None
    assert len(scored) == len(answer["prompt_token_ids"])
    for token, entry in zip(answer["prompt_token_ids"][1:], scored[1:], strict=True):
        assert set(entry[str(token)]) == {"logprob", "rank", "decoded_token"}


def test_words_and_tokens_that_may_not_come(live: Live):
    first = ask(live, return_token_ids=True)["choices"][0]["token_ids"][0]
    assert ask(live, return_token_ids=True, allowed_token_ids=[5])["choices"][0]["token_ids"] == [5] * 6
    other = ask(live, return_token_ids=True, logit_bias={str(first): -100})["choices"][0]["token_ids"][0]
    assert other != first


def test_beams_are_the_likeliest_texts(live: Live):
    answer = ask(live, use_beam_search=True, n=3, length_penalty=1.0, return_token_ids=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({tuple(choice["token_ids"]) for choice in answer["choices"]}) == 3
    assert answer["usage"]["completion_tokens"] == 18


def test_the_servers_role_and_usage_everywhere(engine: EngineClient):
    with serve(engine, response_role="bot", enable_force_include_usage=True) as server:
        assert ask(server)["choices"][0]["message"]["role"] == "bot"
        chunks = stream(server)
        assert chunks[0]["choices"][0]["delta"]["role"] == "bot"
        assert all(chunk["usage"] for chunk in chunks)
        assert chunks[-1]["choices"] == []


def test_the_request_names_its_answer(live: Live):
    assert ask(live, request_id="abc")["id"] == "chatcmpl-abc"
    body = json.dumps(chat(request_id="abc")).encode()
    headers = {"content-type": "application/json", "x-request-id": "from-header"}
    _, sent, answer = live.request("POST", "/v1/chat/completions", body, headers)
    assert json.loads(answer)["id"] == "chatcmpl-from-header"
    assert sent["x-request-id"] == "from-header"


def test_several_names(engine: EngineClient):
    with serve(engine, served_model_name=("first", "second")) as server:
        assert ask(server, model="second")["model"] == "first"
        assert [card["id"] for card in json.loads(server.request("GET", "/v1/models")[2])["data"]] == [
            "first",
            "second",
        ]
        assert json.loads(server.request("GET", "/v1/models/second")[2])["id"] == "second"
        status, answer = server.post(chat(model="third"))
        assert (status, answer["error"]["param"]) == (404, "model")
        assert "'first', 'second'" in answer["error"]["message"]


# ---- fields without effect, and unknown ones ----


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me", "session_id": "s", "store": True, "safety_identifier": "x", "verbosity": "low"},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "prediction": {"type": "content", "content": "x"}},
        {
            "modalities": ["text"],
            "best_of": 1,
            "vllm_xargs": {},
            "kv_transfer_params": {},
            "return_token_offsets": False,
            "repetition_detection": None,
            "parallel_tool_calls": True,
        },
        {"web_search_options": {}, "moderation": None, "echo": False, "add_special_tokens": False, "documents": []},
    ],
)
def test_harmless_fields_are_accepted(live: Live, fields: dict[str, Any]):
    ask(live, **fields)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
        ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
        ({"ec_transfer_params": "x"}, "ec_transfer_params"),
        ({"mm_payload": [1]}, "mm_payload"),
        ({"routed_experts_prompt_start": 0.5}, "routed_experts_prompt_start"),
        ({"return_weight_versions": True}, "return_weight_versions"),
        ({"return_token_offsets": True}, "return_token_offsets"),
        ({"repetition_detection": {"min_count": 2}}, "repetition_detection"),
        ({"watermarking": True}, "watermarking"),
        ({"stream_interval": 0}, "stream_interval"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"n": 17}, "n"),
        ({"best_of": 17, "n": 17}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"length_penalty": 2.0}, "length_penalty"),
        ({"priority": 5}, "priority"),
        ({"max_completion_tokens": 5000}, "max_completion_tokens"),
        ({"cache_salt": "a/b"}, "cache_salt"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"mm_processor_kwargs": {"trust_me": 1}}, "mm_processor_kwargs.trust_me"),
        ({"media_io_kwargs": {"video": {"backend": "x"}}}, "media_io_kwargs.video.backend"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ],
)
def test_fields_that_cannot_be_honoured_are_refused(live: Live, fields: dict[str, Any], param: str):
    status, answer = live.post(chat(**fields))
    assert (status, answer["error"]["param"]) == (400, param)


def test_unknown_fields_may_be_ignored_with_a_warning(engine: EngineClient, caplog: pytest.LogCaptureFixture):
    unknown = chat(
        tempratur=1,
        stream=False,
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi", "colour": 1}], "mood": "x"}],
        logit_bias={"5": 1},
    )
    with serve(engine, allow_unknown_fields=True) as server, caplog.at_level(logging.WARNING):
        assert server.post(unknown)[0] == 200
        assert server.post(chat(functions=[]))[0] == 400
        assert server.post(chat(tempratur=1, temperature="x"))[1]["error"]["param"] == "temperature"
    for name in ("tempratur", "colour", "mood"):
        assert name in caplog.text


@pytest.fixture(scope="module")
def trusting(engine: EngineClient) -> Iterator[Live]:
    with serve(engine, trust_request_mm_kwargs=True) as server:
        yield server


def test_options_beyond_the_safe_list_need_trust(trusting: Live):
    video = {"type": "video_url", "video_url": {"url": samples.data_url("video/mp4", samples.video())}}
    body = chat(messages=user([video, "?"]), media_io_kwargs={"video": {"stack_frames": 2}})
    status, answer = trusting.post(body)
    assert "--trust-request" not in json.dumps(answer), (status, answer)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"cache_salt": "a/b"}, "cache_salt: expected text without control characters, @, /, \\"),
        ({"request_id": "a b"}, "request_id: expected text of letters a to z, digits, ., _, :, -"),
    ],
)
def test_texts_of_the_wrong_characters_are_told_the_right_ones(live: Live, fields: dict[str, str], said: str):
    status, answer = live.post(chat(messages=user("?"), **fields))
    assert (status, answer["error"]["message"]) == (400, said)
