"""/v1/messages with the anthropic SDK: whole and streamed, pictures, tools, thinking, errors in its own form, keys."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from server import samples
from server.live import Live, cut_short, serve, user

from sensorium.engine.client import EngineClient

ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "messages": user("What is that?")}
WEATHER = {
    "name": "weather",
    "description": "Today's weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def sdk(live: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def picture(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source}


PNG = base64.b64encode(samples.picture()).decode()
SHOWN = picture(type="base64", media_type="image/png", data=PNG)


def test_an_answer_comes_whole_with_its_usage(sdk: anthropic.Anthropic, live: Live):
    message = sdk.messages.create(**ASK)
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
    [block] = message.content
    assert block.type == "text"
    assert block.text
    assert message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.output_tokens > 0
    whole = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert sdk.messages.count_tokens(model="tiny", messages=ASK["messages"]).input_tokens == whole
    _, chat = live.post({"messages": ASK["messages"], "max_tokens": 12, "temperature": 0})
    assert chat["choices"][0]["message"]["content"] == block.text


def test_a_stream_is_the_whole_answer_in_pieces(sdk: anthropic.Anthropic):
    whole = sdk.messages.create(**ASK)
    with sdk.messages.stream(**ASK) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert [kind for kind in kinds if kind in ("content_block_start", "content_block_stop", "message_delta")] == [
        "content_block_start",
        "content_block_stop",
        "message_delta",
    ]
    assert kinds[-1] == "message_stop"
    assert final.content[0].model_dump()["text"] == whole.content[0].model_dump()["text"]
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_pictures_are_seen_and_counted(sdk: anthropic.Anthropic):
    words = {"type": "text", "text": "What is that?"}
    for source in (SHOWN, picture(type="url", url=f"data:image/png;base64,{PNG}")):
        messages: Any = user([source, words])
        assert sdk.messages.create(**{**ASK, "messages": messages}).content
        seen = sdk.messages.count_tokens(model="tiny", messages=messages).input_tokens
        assert seen > sdk.messages.count_tokens(model="tiny", messages=user([words])).input_tokens + 50


def test_the_system_prompt_and_stop_sequences_count(sdk: anthropic.Anthropic):
    plain = sdk.messages.count_tokens(model="tiny", messages=ASK["messages"]).input_tokens
    system: Any = [{"type": "text", "text": "Answer briefly.", "cache_control": {"type": "ephemeral"}}]
    assert sdk.messages.count_tokens(model="tiny", messages=ASK["messages"], system=system).input_tokens > plain
    text = sdk.messages.create(**ASK).content[0].model_dump()["text"]
    stopped = sdk.messages.create(**ASK, stop_sequences=[text[2:4]])
    assert stopped.stop_reason == "stop_sequence"
    assert stopped.stop_sequence == text[2:4]
    assert stopped.content[0].model_dump()["text"] == text[: text.index(text[2:4])] if stopped.content else True


def test_an_answer_may_be_begun_for_the_model(sdk: anthropic.Anthropic):
    text = sdk.messages.create(**ASK).content[0].model_dump()["text"]
    begun: Any = [*ASK["messages"], {"role": "assistant", "content": text[:3]}]
    counted = sdk.messages.count_tokens(model="tiny", messages=begun).input_tokens
    assert counted > sdk.messages.count_tokens(model="tiny", messages=ASK["messages"]).input_tokens
    assert sdk.messages.create(**{**ASK, "messages": begun}).content


def test_a_conversation_with_tools_is_understood(sdk: anthropic.Anthropic):
    call = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Rain"}, SHOWN]}
    messages: Any = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, call]},
        {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
    ]
    assert sdk.messages.create(**{**ASK, "messages": messages}).content


@pytest.mark.parametrize(
    "choice", [{"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}]
)
def test_a_tool_that_must_be_called_is_called(sdk: anthropic.Anthropic, choice: Any):
    ask: Any = {**ASK, "max_tokens": 100, "tools": [WEATHER], "tool_choice": choice}
    message = sdk.messages.create(**ask)
    [block] = message.content
    assert block.type == "tool_use"
    assert block.id.startswith("toolu_")
    assert block.name == "weather"
    assert isinstance(block.input["city"], str)
    assert message.stop_reason == "tool_use"
    with sdk.messages.stream(**ask) as stream:
        final = stream.get_final_message()
    assert final.content[0].model_dump()["input"] == block.input


def test_thinking_is_a_block_of_its_own(engine: EngineClient):
    """The model does not think: for a parser that starts inside of thoughts, all it says is one when it may think."""
    with (
        serve(engine, served_model_name="tiny", reasoning_parser="deepseek_r1") as server,
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as sdk,
    ):
        [said] = sdk.messages.create(**ASK).content
        thinking: Any = {**ASK, "max_tokens": 1100, "thinking": {"type": "enabled", "budget_tokens": 1024}}
        thought = sdk.messages.create(**thinking).content[0]
        with sdk.messages.stream(**thinking) as stream:
            final = stream.get_final_message()
        begun: Any = [*thinking["messages"], {"role": "assistant", "content": "Well,"}]
        continued = sdk.messages.create(**{**thinking, "messages": begun}).content
    assert [block.type for block in continued] in ([], ["text"])
    assert said.type == "text"
    assert thought.type == "thinking"
    assert thought.thinking
    assert final.content[0].model_dump()["thinking"] == thought.thinking


def test_errors_come_in_the_form_of_this_api(sdk: anthropic.Anthropic):
    with pytest.raises(anthropic.NotFoundError) as missing:
        sdk.messages.create(**{**ASK, "model": "claude"})
    assert missing.value.body["error"]["type"] == "not_found_error"
    bad = picture(type="base64", media_type="image/png", data=PNG[:40])
    with pytest.raises(anthropic.BadRequestError) as broken:
        sdk.messages.create(**{**ASK, "messages": user([bad])})
    assert broken.value.body["type"] == "error"
    assert broken.value.body["error"]["type"] == "invalid_request_error"
    assert broken.value.body["error"]["message"].startswith("messages[0].content[0].source.data: ")


def test_leaving_a_stream_ends_the_work(sdk: anthropic.Anthropic, live: Live):
    story: Any = {**ASK, "messages": user("Tell me a story."), "max_tokens": 1500}
    with cut_short(live.engine), sdk.messages.stream(**story) as stream:
        next(iter(stream))


def test_keys_come_in_either_header_and_only_here(engine: EngineClient):
    with serve(engine, api_keys=("secret",), served_model_name="tiny") as server:
        for key, passes in {"secret": True, "wrong": False}.items():
            with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as sdk:
                if passes:
                    assert sdk.messages.create(**ASK).content
                    continue
                with pytest.raises(anthropic.AuthenticationError) as refused:
                    sdk.messages.create(**ASK)
                assert refused.value.body["error"]["type"] == "authentication_error"
        with anthropic.Anthropic(base_url=server.url, auth_token="secret", max_retries=0) as sdk:
            assert sdk.messages.create(**ASK).content
        assert server.request("GET", "/v1/models", headers={"x-api-key": "secret"})[0] == 401
        both = {"x-api-key": "secret", "authorization": "Bearer wrong", "content-type": "application/json"}
        assert server.request("POST", "/v1/messages", b"{}", both)[0] == 401


def blocks(*content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(content)}]}


USE = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"max_tokens": 0}, "max_tokens"),
    "no messages": ({"messages": []}, "messages"),
    "another role": ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    "another block": (blocks({"type": "video"}), "messages[0].content[0]"),
    "a block without content": (blocks({"type": "text"}), "messages[0].content[0].text"),
    "a picture of no kind": (blocks(picture(type="base64", media_type="x", data="AAAA")), "messages[0].content[0]"),
    "a picture that is none": (blocks(picture(type="base64", media_type="image/png", data="AAAA")), "messages[0]"),
    "a local picture": (blocks(picture(type="url", url="file:///etc/passwd")), "messages[0].content[0].source.url"),
    "a private picture": (blocks(picture(type="url", url="http://127.0.0.1:1/a.png")), "messages[0].content[0]"),
    "a call by the user": (blocks(USE), "messages[0].content[0]"),
    "a result by the model": (
        blocks({"type": "tool_result", "tool_use_id": "a"}, role="assistant"),
        "messages[0].content[0]",
    ),
    "too warm": ({"temperature": 1.5}, "temperature"),
    "too many stops": ({"stop_sequences": list("abcde")}, "stop_sequences"),
    "little thinking": ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking.budget_tokens"),
    "thinking past the end": ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
    "a choice of nothing": ({"tool_choice": {"type": "any"}}, "tool_choice"),
    "a choice of another": ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
    "tools of one name": ({"tools": [WEATHER, WEATHER], "tool_choice": {"type": "none"}}, "tools"),
    "tools without a parser": ({"tools": [WEATHER]}, "tool_choice"),
    "a server's tool": ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
    "servers of tools": ({"mcp_servers": []}, "mcp_servers"),
    "an unknown field": ({"max_token": 5}, "max_token"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_is_named(live: Live, name: str, stream: bool):
    fields, param = HOSTILE[name]
    status, answer = live.post({**ASK, **fields, "stream": stream}, "/v1/messages")
    assert status == 400, answer
    assert set(answer) == {"type", "error"}
    assert answer["type"] == "error"
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"].startswith(param)


def test_a_broken_body_and_a_large_one_have_the_form_too(engine: EngineClient):
    with serve(engine, max_body_bytes=1000) as server:
        headers = {"content-type": "application/json"}
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            assert b'"invalid_request_error"' in server.request("POST", path, b'{"model', headers)[2]
            status, _, answer = server.request("POST", path, bytes(2000), headers)
            assert status == 413
            assert b'"request_too_large"' in answer
