"""The openai client: conversations with a picture, streams, embeddings, a recording, and what is not offered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from sensorium.demo import ASSETS

WHAT, HOW_MANY = "What is in the picture?", "How many objects are there?"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat_with_a_picture_and_a_stream(client: openai.OpenAI, shown: dict[str, Any], expected: dict[str, str]):
    messages: list[Any] = [{"role": "user", "content": [shown, {"type": "text", "text": WHAT}]}]
    first = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert first.choices[0].message.content == expected[WHAT]
    messages += [first.choices[0].message, {"role": "user", "content": HOW_MANY}]
    with client.chat.completions.stream(model="tiny", messages=messages, temperature=0) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(pieces) == final.choices[0].message.content != ""
    assert len(pieces) >= 1
    assert final.choices[0].finish_reason == "stop"


def test_responses_with_a_picture_and_a_stream(client: openai.OpenAI, picture: str, expected: dict[str, str]):
    part = {"type": "input_image", "image_url": f"data:image/png;base64,{picture}", "detail": "auto"}
    items: list[Any] = [{"role": "user", "content": [part, {"type": "input_text", "text": WHAT}]}]
    first = client.responses.create(model="tiny", input=items, temperature=0)
    assert first.output_text == expected[WHAT]
    items += [*first.output, {"role": "user", "content": HOW_MANY}]
    with client.responses.stream(model="tiny", input=items, temperature=0) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text != ""


def test_a_recording_is_written_down(client: openai.OpenAI):
    with (ASSETS / "speech.wav").open("rb") as file:
        assert client.audio.transcriptions.create(model="tiny", file=file).text == "The small bird is near the window."


def test_embeddings(pooling_url: str):
    with openai.OpenAI(base_url=f"{pooling_url}/v1", api_key="none") as client:
        answer = client.embeddings.create(model="tiny", input=["Hello", "Good morning", "Hello"])
    first, other, again = [item.embedding for item in answer.data]
    assert first == pytest.approx(again, abs=1e-5)
    assert first != pytest.approx(other, abs=1e-3)


def test_files_are_not_offered(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError):
        client.files.list()
