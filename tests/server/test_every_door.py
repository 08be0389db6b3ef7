"""What holds whichever door a request comes in by: options of media, priorities, pieces of streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from server.live import Live, serve, user

from sensorium.config import EngineConfig
from sensorium.engine.client import EngineClient

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
SHORT: dict[str, dict[str, Any]] = {
    CHAT: {"messages": user("Tell me a story."), "max_tokens": 9, "temperature": 0, "ignore_eos": True},
    COMPLETIONS: {"prompt": "Tell me a story.", "max_tokens": 9, "temperature": 0, "ignore_eos": True},
    RESPONSES: {"input": "Tell me a story.", "max_output_tokens": 9, "temperature": 0, "ignore_eos": True},
    MESSAGES: {"model": "tiny", "messages": user("Tell me a story."), "max_tokens": 9, "temperature": 0},
    "/tokenize": {"messages": user("Tell me a story.")},
}


def events(live: Live, path: str, headers: dict[str, str] | None = None, **fields: Any) -> list[dict[str, Any]]:
    """What a stream's data lines hold."""
    body = json.dumps({**SHORT[path], **fields, "stream": True}).encode()
    status, _, sent = live.request("POST", path, body, {"content-type": "application/json", **(headers or {})})
    assert status == 200, sent
    lines = [line.removeprefix("data: ") for line in sent.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def texts(path: str, found: list[dict[str, Any]]) -> list[str]:
    """The pieces of text in a stream."""
    pieces: list[str] = []
    for event in found:
        if path == CHAT:
            pieces += [choice["delta"].get("content", "") for choice in event["choices"]]
        elif path == COMPLETIONS:
            pieces += [choice["text"] for choice in event["choices"]]
        elif path == RESPONSES:
            pieces += [event["delta"]] if event["type"] == "response.output_text.delta" else []
        else:
            pieces += [event["delta"]["text"]] if event["type"] == "content_block_delta" else []
    return [piece for piece in pieces if piece]


@pytest.mark.parametrize("path", [CHAT, RESPONSES, "/tokenize"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"mm_processor_kwargs": {"trust_me": 1}}, "mm_processor_kwargs.trust_me"),
        ({"media_io_kwargs": {"video": {"backend": "x"}}}, "media_io_kwargs.video.backend"),
        ({"media_io_kwargs": {"video": {"num_frames": 1 << 20}}}, "media_io_kwargs.video.num_frames"),
        ({"media_io_kwargs": {"video": {"fps": True}}}, "media_io_kwargs.video.fps"),
        ({"media_io_kwargs": {"audio": {"sr": 1}}}, "media_io_kwargs.audio.sr"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
    ],
)
def test_options_that_need_trust_are_refused(live: Live, path: str, fields: dict[str, Any], param: str):
    status, answer = live.post({**SHORT[path], **fields}, path)
    assert (status, answer["error"]["param"]) == (400, param)


def sizes(path: str, found: list[dict[str, Any]]) -> list[int]:
    """Tokens of each piece: of chat and completions, whose pieces can be told to show them."""
    return [len(ids) for event in found for choice in event["choices"] if (ids := choice.get("token_ids"))]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_pieces_of_a_stream_have_as_many_tokens_as_asked_for(live: Live, path: str):
    single = events(live, path, return_token_ids=True)
    many = events(live, path, return_token_ids=True, stream_interval=4)
    assert "".join(texts(path, many)) == "".join(texts(path, single))
    assert sum(sizes(path, many)) == 9
    # Pieces that are ready together go as one; so there may be fewer, and larger ones.
    assert all(size >= 4 for size in sizes(path, many)[1:-1])
    assert len(sizes(path, many)) <= 4


def test_pieces_of_a_response_likewise(live: Live):
    single, many = (
        texts(RESPONSES, events(live, RESPONSES)),
        texts(RESPONSES, events(live, RESPONSES, stream_interval=4)),
    )
    assert "".join(many) == "".join(single)
    assert len(many) < len(single)


@pytest.mark.parametrize("fields", [{"n": 2, "logprobs": True, "return_token_ids": True}])
def test_nothing_is_lost_between_the_pieces(live: Live, fields: dict[str, Any]):
    def by_choice(found: list[dict[str, Any]]) -> list[tuple[list[int], int]]:
        ids: dict[int, list[int]] = {0: [], 1: []}
        scores = {0: 0, 1: 0}
        for choice in (choice for event in found for choice in event["choices"]):
            ids[choice["index"]] += choice.get("token_ids", [])
            scores[choice["index"]] += len((choice.get("logprobs") or {}).get("content", []))
        return [(ids[number], scores[number]) for number in ids]

    fields = {**fields, "temperature": 1, "seed": 5}
    single = by_choice(events(live, CHAT, **fields))
    assert by_choice(events(live, CHAT, **fields, stream_interval=3)) == single
    assert [len(ids) for ids, _ in single] == [scores for _, scores in single] == [9, 9]


@pytest.fixture(scope="module")
def orderly(engine: EngineClient) -> Iterator[Live]:
    """A server that heeds priorities and sends three tokens at once."""
    config = EngineConfig(
        model=engine.config.model,
        max_model_len=512,
        max_num_seqs=4,
        kv_cache_bytes=16 << 20,
        scheduling_policy="priority",
        stream_interval=3,
    )
    with EngineClient(config) as client, serve(client, served_model_name="tiny") as server:
        yield server


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_servers_interval_is_the_least(orderly: Live, path: str):
    found = events(orderly, path, return_token_ids=True, stream_interval=1)
    assert all(size >= 3 for size in sizes(path, found)[1:-1])
    assert sum(sizes(path, found)) == 9


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_it_holds_where_no_request_can_say_so(orderly: Live, live: Live, path: str):
    many, single = texts(path, events(orderly, path)), texts(path, events(live, path))
    assert "".join(many) == "".join(single)
    assert len(many) < len(single)


def test_a_priority_may_come_in_a_header(orderly: Live, live: Live):
    for path, body in SHORT.items():
        data = json.dumps(body).encode()
        for value, wanted in (("7", 200), ("-3", 200), ("high", 400), ("1e3", 400), ("9" * 19, 400), ("", 400)):
            headers = {"content-type": "application/json", "x-vllm-priority": value, "x-session-id": "s-1"}
            status, _, answer = orderly.request("POST", path, data, headers)
            assert status == (200 if path == "/tokenize" else wanted), (path, value, answer)
            if status == 400 and path != MESSAGES:
                assert json.loads(answer)["error"]["param"] == "x-vllm-priority"
    headers = {"content-type": "application/json", "x-vllm-priority": "7"}
    status, _, answer = live.request("POST", CHAT, json.dumps(SHORT[CHAT]).encode(), headers)
    assert (status, json.loads(answer)["error"]["param"]) == (400, "priority")


def test_a_rule_of_vllm_in_responses(live: Live):
    status, answer = live.post({"input": "Red or blue?", "structured_outputs": {"choice": ["red", "blue"]}}, RESPONSES)
    assert status == 200
    assert answer["output"][0]["content"][0]["text"] in ("red", "blue")
    both = {"structured_outputs": {"choice": ["a"]}, "text": {"format": {"type": "json_object"}}}
    status, answer = live.post({"input": "x", **both}, RESPONSES)
    assert (status, answer["error"]["param"]) == (400, "structured_outputs")


def test_log_probabilities_come_with_the_pieces_of_a_response(live: Live):
    found = events(live, RESPONSES, include=["message.output_text.logprobs"], top_logprobs=1)
    pieces = [event["logprobs"] for event in found if event["type"] == "response.output_text.delta"]
    done = next(event for event in found if event["type"] == "response.output_text.done")
    assert [entry for piece in pieces for entry in piece] == done["logprobs"]
    assert len(done["logprobs"]) == 9


def test_a_response_repeats_what_was_asked(live: Live):
    status, answer = live.post(
        {**SHORT[RESPONSES], "service_tier": "flex", "prompt_cache_key": "k", "safety_identifier": "s"}, RESPONSES
    )
    assert status == 200
    assert (answer["service_tier"], answer["prompt_cache_key"], answer["safety_identifier"]) == ("flex", "k", "s")
    assert answer["top_logprobs"] == 0


def test_a_model_says_who_may_use_it(live: Live):
    [card] = json.loads(live.request("GET", "/v1/models")[2])["data"]
    [permission] = card["permission"]
    assert permission["object"] == "model_permission"
    assert permission["allow_sampling"]
    assert not permission["is_blocking"]
