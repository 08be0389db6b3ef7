"""LangChain's OpenAI classes: chat with a picture, streams, bound tools, structured output, embeddings."""

from __future__ import annotations

import os
from typing import Any

import pytest

WHAT, HOW_MANY = "What is in the picture?", "How many objects are there?"
DAYS = {
    "title": "Days",
    "description": "How many days are asked about.",
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["days"],
    "additionalProperties": False,
}
QUESTION = "What is the weather for the next three days?"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def langchain_openai() -> Any:
    os.environ["LANGSMITH_TRACING"] = "false"
    return pytest.importorskip("langchain_openai", reason="langchain-openai is not installed (the extra clients)")


@pytest.fixture(scope="module")
def model(langchain_openai: Any, url: str) -> Any:
    return langchain_openai.ChatOpenAI(
        model="tiny", base_url=f"{url}/v1", api_key="none", temperature=0, max_tokens=64, max_retries=0
    )


def test_a_conversation_with_a_picture_and_a_stream(model: Any, shown: dict[str, Any], expected: dict[str, str]):
    messages: list[Any] = [{"role": "user", "content": [shown, {"type": "text", "text": WHAT}]}]
    first = model.invoke(messages)
    assert first.content == expected[WHAT]
    assert first.usage_metadata["output_tokens"] > 0
    messages += [first, {"role": "user", "content": HOW_MANY}]
    chunks = list(model.stream(messages))
    assert "".join(chunk.content for chunk in chunks) == model.invoke(messages).content != ""
    assert len(chunks) > 1


async def test_a_stream_without_threads(model: Any):
    chunks = [chunk.content async for chunk in model.astream("Good morning!")]
    assert "".join(chunks) == (await model.ainvoke("Good morning!")).content != ""


def test_a_bound_tool_is_called_and_answered(model: Any):
    tool = {"type": "function", "function": {"name": "weather", "description": "It.", "parameters": DAYS}}
    called = model.bind_tools([tool], tool_choice="weather").invoke(QUESTION)
    [call] = called.tool_calls
    assert call["name"] == "weather"
    assert 1 <= call["args"]["days"] <= 9
    streamed = None
    for chunk in model.bind_tools([tool], tool_choice="any").stream(QUESTION):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert streamed.tool_calls[0]["name"] == "weather"
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Rain"}
    turns: list[Any] = [{"role": "user", "content": QUESTION}, called, result]
    assert model.bind_tools([tool]).invoke(turns).response_metadata["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: Any, method: str):
    answer = model.with_structured_output(DAYS, method=method).invoke(QUESTION)
    assert 1 <= answer["days"] <= 9


def test_embeddings(langchain_openai: Any, pooling_url: str):
    embeddings = langchain_openai.OpenAIEmbeddings(
        model="tiny", base_url=f"{pooling_url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    first, second = embeddings.embed_documents(["Hello", "Good morning"])
    assert embeddings.embed_query("Hello") == pytest.approx(first, abs=1e-5)
    assert first != pytest.approx(second, abs=1e-3)
