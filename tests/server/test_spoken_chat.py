"""Chat completions that are heard: whole and streamed, with the openai SDK, and what cannot be spoken."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from server.live import Live, eventually, user

from sensorium.media.wav import read_wav

SPOKEN: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "default", "format": "wav"}}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def sdk(speaking: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{speaking.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_an_answer_is_text_and_sound(sdk: openai.OpenAI):
    answer = sdk.chat.completions.create(model="tiny", messages=user("Say hello"), max_tokens=8, seed=1, **SPOKEN)  # type: ignore[arg-type]
    message = answer.choices[0].message
    assert message.content is None
    assert message.audio is not None
    assert message.audio.id.startswith("audio_")
    assert message.audio.expires_at > answer.created
    whole = read_wav(base64.b64decode(message.audio.data))
    assert whole is not None
    assert whole.rate == 24_000
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    spoken = answer.usage.completion_tokens_details.audio_tokens
    assert spoken == pytest.approx(whole.frames / 960, abs=1)
    assert 0 < answer.usage.completion_tokens - spoken <= 8  # type: ignore[operator]
    assert message.audio.transcript
    heard = answer.usage.prompt_tokens_details
    assert heard is not None
    assert heard.audio_tokens == pytest.approx(30, abs=2)  # the voice, which the model hears first


def test_a_stream_has_its_words_and_its_sound(sdk: openai.OpenAI):
    chunks = list(
        sdk.chat.completions.create(
            model="tiny",
            messages=user("Say hello"),  # type: ignore[arg-type]
            max_tokens=12,
            seed=2,
            stream=True,
            stream_options={"include_usage": True},
            modalities=["text", "audio"],
            audio={"voice": "alloy", "format": "pcm16"},
        )
    )
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    heard: list[dict[str, Any]] = [
        delta.audio if isinstance(delta.audio, dict) else delta.audio.to_dict() for delta in deltas if delta.audio
    ]  # type: ignore[union-attr]
    assert heard[0]["id"].startswith("audio_")
    assert not any(delta.content for delta in deltas)
    assert [bool(delta.audio) for delta in deltas] == [True] * (len(deltas) - 1) + [False], "none that says nothing"
    pcm = b"".join(base64.b64decode(audio["data"]) for audio in heard if "data" in audio)
    transcript = "".join(audio.get("transcript", "") for audio in heard)
    assert "expires_at" in heard[-1]
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert len(pcm) % 2 == 0
    assert np.frombuffer(pcm, "<i2").any()
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.audio_tokens == pytest.approx(len(pcm) / 1920, abs=1)
    # The id stands for what was said, as long as it is kept.
    ident = heard[0]["id"]
    asked: list[Any] = [*user("Say hello"), {"role": "assistant", "audio": {"id": ident}}, *user("Again")]
    told: list[Any] = [*user("Say hello"), {"role": "assistant", "content": transcript}, *user("Again")]
    first, second = (
        sdk.chat.completions.create(model="tiny", messages=messages, max_tokens=1).usage for messages in (asked, told)
    )
    assert first is not None
    assert second is not None
    assert first.prompt_tokens == second.prompt_tokens


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"stream": True}, "audio.format"),
        ({"audio": {"voice": "nobody", "format": "wav"}}, "audio.voice"),
        ({"audio": {"voice": "default", "format": "midi"}}, "audio.format"),
        ({"audio": {"voice": "default", "format": "wav", "speed": 2}}, "audio.speed"),
        ({"modalities": ["text"]}, "audio"),
        ({"modalities": ["smell"]}, "modalities[0]"),
        ({"modalities": []}, "modalities"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}, "tools"),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}, *user("Hi")]}, "messages[0].audio.id"),
        ({"messages": [{"role": "assistant", "audio": 7}, *user("Hi")]}, "messages[0].audio"),
    ],
)
def test_what_cannot_be_spoken_is_refused_by_name(speaking: Live, body: dict[str, Any], param: str):
    status, answer = speaking.post({"messages": user("Hi"), **SPOKEN, **body})
    assert (status, answer["error"]["param"]) == (400, param), answer


def test_a_model_that_does_not_speak_says_so(live: Live):
    status, answer = live.post({"messages": user("Hi"), **SPOKEN})
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "modalities", "unsupported")


def test_leaving_ends_the_sound_too(speaking: Live):
    body = json.dumps(
        {"messages": user("Go on"), "max_tokens": 600, "min_tokens": 600, "stream": True, **SPOKEN, "audio": None}
    ).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with socket.create_connection(("127.0.0.1", speaking.port), timeout=60) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        received = b""
        while b'"data"' not in received:
            received += connection.recv(65536)
    assert eventually(lambda: speaking.engine.num_requests == 0)
