"""LiteLLM with this server as an OpenAI-compatible provider: a picture, streams, tools, embeddings."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

WHAT, HOW_MANY = "What is in the picture?", "How many objects are there?"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def litellm() -> Any:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks the network for prices otherwise
    return pytest.importorskip("litellm", reason="litellm is not installed (the extra clients)")


@pytest.fixture(scope="module", params=["openai/tiny", "hosted_vllm/tiny"])
def served(request: pytest.FixtureRequest, url: str) -> dict[str, Any]:
    return {"model": request.param, "api_base": f"{url}/v1", "api_key": "none", "temperature": 0, "max_tokens": 64}


def test_a_conversation_with_a_picture_and_a_stream(
    litellm: Any, served: dict[str, Any], shown: dict[str, Any], expected: dict[str, str]
):
    messages: list[Any] = [{"role": "user", "content": [shown, {"type": "text", "text": WHAT}]}]
    first = litellm.completion(messages=messages, **served)
    assert first.choices[0].message.content == expected[WHAT]
    messages += [first.choices[0].message, {"role": "user", "content": HOW_MANY}]
    whole = litellm.completion(messages=messages, **served).choices[0].message.content
    chunks = list(litellm.completion(messages=messages, stream=True, **served))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole != ""


async def test_a_stream_without_threads(litellm: Any, served: dict[str, Any]):
    messages = [{"role": "user", "content": "Good morning!"}]
    text = ""
    async for chunk in await litellm.acompletion(messages=messages, stream=True, **served):
        text += chunk.choices[0].delta.content or ""
    assert text == litellm.completion(messages=messages, **served).choices[0].message.content != ""


def test_a_tool_is_called(litellm: Any, served: dict[str, Any]):
    schema = {"type": "object", "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}}
    schema |= {"required": ["days"], "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "weather", "parameters": schema}}
    messages = [{"role": "user", "content": "What is the weather for the next three days?"}]
    answer = litellm.completion(messages=messages, tools=[tool], tool_choice="required", **served)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert 1 <= json.loads(call.function.arguments)["days"] <= 9


def test_embeddings(litellm: Any, pooling_url: str):
    answer = litellm.embedding(
        model="openai/tiny", api_base=f"{pooling_url}/v1", api_key="none", input=["Hello", "Good morning", "Hello"]
    )
    first, other, again = [item["embedding"] for item in answer.data]
    assert first == pytest.approx(again, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-3)
