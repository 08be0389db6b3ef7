"""/tokenize and /detokenize: the same tokens that a request of that content has, media counted."""

from __future__ import annotations

from typing import Any

import pytest
from server import samples
from server.bodies import image_part
from server.live import Live, serve, user

PNG_URL = samples.data_url("image/png", samples.picture())


def test_a_prompt_goes_there_and_back(live: Live):
    status, answer = live.post({"prompt": "Hello, wörld 你好", "return_token_strs": True}, "/tokenize")
    assert status == 200
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) > 1
    assert answer["max_model_len"] == live.engine.max_model_len
    assert "multimodal_tokens" not in answer
    assert live.post({"tokens": answer["tokens"]}, "/detokenize") == (200, {"prompt": "Hello, wörld 你好"})


def test_a_conversation_has_the_tokens_that_its_answer_is_billed_for(live: Live):
    messages = user([image_part(PNG_URL), {"type": "text", "text": "What is that?"}])
    _, tokens = live.post({"messages": messages}, "/tokenize")
    _, answer = live.post({"messages": messages, "max_tokens": 1})
    assert tokens["count"] == answer["usage"]["prompt_tokens"]
    assert tokens["multimodal_tokens"]["image"] == answer["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    _, closed = live.post({"messages": messages, "add_generation_prompt": False}, "/tokenize")
    assert closed["tokens"] == tokens["tokens"][: closed["count"]]
    assert closed["count"] < tokens["count"]


def test_control_tokens_are_read_in_a_prompt_and_not_in_a_message(live: Live):
    special = live.engine.tokenizer.decode([live.engine.tokenizer.eos_ids[0]], skip_special=False)
    _, raw = live.post({"prompt": special}, "/tokenize")
    assert raw["count"] == 1
    _, typed = live.post({"messages": user(special)}, "/tokenize")
    _, empty = live.post({"messages": user("x")}, "/tokenize")
    assert typed["tokens"].count(raw["tokens"][0]) == empty["tokens"].count(raw["tokens"][0])


@pytest.mark.parametrize("special", [True, False])
def test_an_empty_prompt_has_no_tokens_of_its_own(live: Live, special: bool):
    status, answer = live.post({"prompt": "", "add_special_tokens": special}, "/tokenize")
    assert (status, answer["count"]) == (200, 0)


HOSTILE: dict[str, tuple[str, Any, str]] = {
    "neither": ("/tokenize", {}, "prompt"),
    "both": ("/tokenize", {"prompt": "a", "messages": user("a")}, "prompt"),
    "a chat field with a prompt": (
        "/tokenize",
        {"prompt": "a", "add_generation_prompt": True},
        "add_generation_prompt",
    ),
    "special tokens around a template": (
        "/tokenize",
        {"messages": user("a"), "add_special_tokens": True},
        "add_special_tokens",
    ),
    "a broken picture": (
        "/tokenize",
        {"messages": user([image_part(samples.data_url("image/png", b"no"))])},
        "messages[0].content[0].image_url",
    ),
    "unknown field": ("/tokenize", {"promt": "a"}, "promt"),
    "half a surrogate pair": ("/tokenize", b'{"prompt": "\\ud800"}', "prompt"),
    "a picture that is not there": ("/tokenize", {"prompt": "<image>./</image>"}, "prompt"),
    "an id past the vocabulary": ("/detokenize", {"tokens": [1, 1 << 30]}, "tokens[1]"),
    "a negative id": ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
    "text for an id": ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
    "no tokens": ("/detokenize", {}, "tokens"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_is_named(live: Live, name: str):
    path, body, param = HOSTILE[name]
    status, answer = live.post(body, path)
    assert status == 400, answer
    assert answer["error"]["param"] == param


def test_another_model_is_not_found(live: Live):
    for path, body in {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [1]}}.items():
        status, answer = live.post({**body, "model": "gpt"}, path)
        assert (status, answer["error"]["param"]) == (404, "model")


def test_tools_are_counted_as_in_a_request(live: Live):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    messages = user("Good morning!")
    status, counted = live.post({"messages": messages, "tools": tools}, "/tokenize")
    assert status == 200
    body = {"messages": messages, "tools": tools, "tool_choice": "none", "max_tokens": 1}
    assert counted["count"] == live.post(body)[1]["usage"]["prompt_tokens"]


def test_a_template_of_the_client_needs_trust(live: Live):
    body = {"messages": user("Good morning!"), "chat_template": "{{ messages[0].content }}"}
    status, answer = live.post(body, "/tokenize")
    assert (status, answer["error"]["param"]) == (400, "chat_template")
    with serve(live.engine, trust_request_chat_template=True) as server:
        counted = server.post(body, "/tokenize")[1]["tokens"]
    assert counted == live.post({"prompt": "Good morning!", "add_special_tokens": False}, "/tokenize")[1]["tokens"]
