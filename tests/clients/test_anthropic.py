"""The anthropic client: a conversation with a picture, a stream, and a tool that is called and answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

WHAT, HOW_MANY = "What is in the picture?", "How many objects are there?"
SCHEMA = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["days"],
    "additionalProperties": False,
}
WEATHER: Any = {"name": "weather", "description": "The weather of the next days.", "input_schema": SCHEMA}


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def test_a_conversation_with_a_picture_and_a_stream(
    client: anthropic.Anthropic, picture: str, expected: dict[str, str]
):
    shown = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": picture}}
    messages: list[Any] = [{"role": "user", "content": [shown, {"type": "text", "text": WHAT}]}]
    first = client.messages.create(model="tiny", max_tokens=64, messages=messages, extra_body={"temperature": 0})
    assert first.content[0].model_dump()["text"] == expected[WHAT]
    messages += [{"role": "assistant", "content": first.content}, {"role": "user", "content": HOW_MANY}]
    with client.messages.stream(
        model="tiny", max_tokens=64, messages=messages, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].model_dump()["text"] != ""
    assert final.stop_reason == "end_turn"


def test_a_tool_is_called_and_answered(client: anthropic.Anthropic):
    ask: dict[str, Any] = {"model": "tiny", "max_tokens": 64, "tools": [WEATHER], "extra_body": {"temperature": 0}}
    messages: list[Any] = [{"role": "user", "content": "What is the weather for the next three days?"}]
    called = client.messages.create(**ask, messages=messages, tool_choice={"type": "tool", "name": "weather"})
    assert called.stop_reason == "tool_use"
    call: Any = called.content[-1]
    assert 1 <= call.input["days"] <= 9
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain"}
    messages += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(**ask, messages=messages)
    assert answer.stop_reason in ("end_turn", "max_tokens")
    counted = client.messages.count_tokens(model="tiny", messages=messages, tools=[WEATHER]).input_tokens
    assert counted == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
