"""The published demo's sequence of messages against /ws/chat and /ws/half_duplex/{id}."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from server.live import Live, eventually
from server.sockets import JsonSocket
from websockets.sync.client import connect

RATE = 16_000


class Client(JsonSocket):
    def hear(self, samples: np.ndarray) -> None:
        """As the demo's page sends it: half a second in a message."""
        for start in range(0, len(samples), RATE // 2):
            self.send("audio_chunk", audio_base64=floats(samples[start : start + RATE // 2]))


def floats(samples: np.ndarray) -> str:
    return base64.b64encode(samples.astype("<f4").tobytes()).decode()


def voice(seconds: float) -> np.ndarray:
    """What stands out of a silence: syllables in the band of the voice."""
    t = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * 600 * t) * (1 + np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * RATE), dtype=np.float32)


def picture() -> str:
    file = BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@contextmanager
def half_duplex(live: Live, **prepare: Any) -> Iterator[Client]:
    with connect(f"ws://127.0.0.1:{live.port}/ws/half_duplex/hdx_1", max_size=None) as socket:
        client = Client(socket)
        assert client.next() == {"type": "queue_done"}
        client.send("prepare", **prepare)
        yield client


@contextmanager
def chat(live: Live, **question: Any) -> Iterator[Client]:
    with connect(f"ws://127.0.0.1:{live.port}/ws/chat", max_size=None) as socket:
        socket.send(json.dumps(question))
        yield Client(socket)


SHORT: dict[str, Any] = {"generation": {"max_new_tokens": 6, "temperature": 0}}


# ---- half duplex --------------------------------------------------------------------------------------------------


def test_a_conversation_in_turns(speaking: Live):
    system = [{"type": "text", "text": "You are a guide."}]
    with half_duplex(speaking, system_content=system, config=SHORT | {"session": {"timeout_s": 60}}) as client:
        prepared = client.next()
        assert (prepared["type"], prepared["timeout_s"]) == ("prepared", 60)
        for turn in (1, 2):
            client.hear(np.concatenate([silence(1), voice(1), silence(1)]))
            events = client.until("turn_done")
            kinds = [event["type"] for event in events]
            assert kinds[:3] == ["vad_state", "vad_state", "generating"]
            assert [event["speaking"] for event in events[:2]] == [True, False]
            assert 1000 <= events[2]["speech_duration_ms"] <= 2000
            chunks = events[3:-1]
            assert [chunk["chunk_index"] for chunk in chunks] == list(range(len(chunks)))
            assert [chunk["is_final"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
            assert events[-1]["turn_index"] == turn
            assert events[-1]["text"] == "".join(chunk["text_delta"] for chunk in chunks)
            sound = b"".join(base64.b64decode(chunk["audio_data"]) for chunk in chunks if chunk["audio_data"])
            assert np.abs(np.frombuffer(sound, "<f4")).max() > 0
            assert sum(chunk["duration_ms"] for chunk in chunks) == pytest.approx(len(sound) / 4 / 24, abs=len(chunks))
        client.send("stop")
        assert client.closed() == 1000


def test_without_sound_it_answers_in_text(speaking: Live):
    with half_duplex(speaking, config=SHORT | {"tts": {"enabled": False}}) as client:
        assert client.next()["type"] == "prepared"
        client.hear(np.concatenate([silence(1), voice(0.5), silence(1)]))
        assert all(event.get("audio_data") is None for event in client.until("turn_done"))


def test_what_is_heard_right_after_the_opening_does_not_count(speaking: Live):
    with half_duplex(speaking, config=SHORT) as client:
        assert client.next()["type"] == "prepared"
        client.hear(np.concatenate([voice(0.45), silence(1.55), voice(0.5), silence(1)]))
        generating = next(event for event in client.until("generating") if event["type"] == "generating")
        assert generating["speech_duration_ms"] < 1500
        client.send("stop")


def test_who_leaves_in_the_middle_of_an_answer_ends_it(speaking: Live):
    with half_duplex(speaking, config={"generation": {"max_new_tokens": 900}}) as client:
        assert client.next()["type"] == "prepared"
        client.hear(np.concatenate([silence(1), voice(0.5), silence(1)]))
        client.until("chunk")
    assert eventually(lambda: speaking.engine.num_requests == 0)


def test_time_runs_out(speaking: Live):
    with half_duplex(speaking, config={"session": {"timeout_s": 1}}) as client:
        assert client.next()["type"] == "prepared"
        assert client.next() == {"type": "timeout", "elapsed_s": pytest.approx(1, abs=20)}
        assert client.closed() == 1000


@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        ({"config": {"session": {"timeout_s": 0}}}, "timeout_s"),
        ({"config": {"vad": {"threshold": 2}}}, "threshold"),
        ({"config": {"generation": {"length_penalty": 3}}}, "length_penalty"),
        ({"config": {"generation": {"max_new_tokens": 0}}}, "max_new_tokens"),
        ({"config": {"generation": {"temperature": -1}}}, "temperature"),
        ({"config": {"tts": {"ref_audio_data": "AAAA"}}}, "ref_audio_data"),
        ({"system_content": [{"type": "audio", "data": "AAA"}]}, "system_content[0].data"),
        ({"system_content": [{"type": "audio", "data": "AAAA", "sample_rate": 1}]}, "sample_rate"),
        ({"system_prompt": "the documents name it, the demo's code does not"}, "system_prompt"),
    ],
)
def test_wishes_that_are_not_served_are_refused_by_name(speaking: Live, prepare: dict[str, Any], named: str):
    with half_duplex(speaking, **prepare) as client:
        error = client.next()
        assert error["type"] == "error"
        assert named in error["error"]
        assert client.closed() == 1008


@pytest.mark.parametrize("data", [{"audio_base64": "A"}, {"audio_base64": floats(silence(11))}, {"audio": ""}, {}])
def test_a_wrong_message_changes_nothing(speaking: Live, data: dict[str, Any]):
    with half_duplex(speaking, config=SHORT) as client:
        assert client.next()["type"] == "prepared"
        client.send("audio_chunk", **data)
        assert client.next()["type"] == "error"
        client.hear(np.concatenate([silence(1), voice(0.5), silence(1)]))
        assert client.until("turn_done")[-1]["turn_index"] == 1


def asked(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


# ---- chat ---------------------------------------------------------------------------------------------------------


def test_a_question_with_a_picture_and_a_sound(speaking: Live):
    content = [
        {"type": "image", "data": picture()},
        {"type": "audio", "data": floats(voice(1)), "sample_rate": RATE},
        {"type": "text", "text": "What is this?"},
    ]
    question = {"messages": [{"role": "user", "content": content}], "generation": SHORT["generation"]}
    with chat(speaking, **question, image={"max_slice_nums": 1}, tts={"enabled": True}) as client:
        events = client.until("done")
        assert events[0]["type"] == "prefill_done"
        done = events[-1]
        assert done["text"] == "".join(event.get("text_delta", "") for event in events[1:-1])
        assert any(event.get("audio_data") for event in events[1:-1])
        assert "audio_data" not in done
        assert events[0]["input_tokens"] == done["input_tokens"] > 64
        assert 1 <= done["generated_tokens"] <= 6
        assert client.closed() == 1000
    with chat(speaking, **question, streaming=False, tts={"enabled": True}) as client:
        assert [event["type"] for event in client.until("done")] == ["prefill_done", "done"]


def test_a_whole_answer_has_its_sound_at_its_end(speaking: Live):
    question = {"messages": [{"role": "user", "content": "Hello?"}], "streaming": False, **SHORT}
    with chat(speaking, **question, tts={"enabled": True}, use_tts_template=True) as client:
        done = client.until("done")[-1]
        assert np.abs(np.frombuffer(base64.b64decode(done["audio_data"]), "<f4")).max() > 0


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ({"messages": []}, "messages"),
        (asked({"type": "image", "data": "?"}), "messages[0].content[0].data"),
        (asked({"type": "image", "data": "AAAA"}), "messages[0].content[0]"),
        (asked({"type": "video", "data": "", "stack_frames": 5}), "stack_frames"),
        ({"messages": [{"role": "nobody", "content": ""}]}, "role"),
        ({"messages": [{"role": "user", "content": "Hello?"}], "image": {"max_slice_nums": 0}}, "max_slice_nums"),
        ({"messages": [{"role": "user", "content": "Hello?"}], "beams": 3}, "beams"),
        ({}, "messages"),
    ],
)
def test_questions_that_cannot_be_answered(speaking: Live, question: dict[str, Any], named: str):
    with chat(speaking, **question) as client:
        error = client.next()
        assert error["type"] == "error"
        assert named in error["error"]
        assert client.closed() == 1008
