"""/v1/responses with the openai SDK: whole and streamed, media, items, kept answers, background, hostile requests."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from server import samples
from server.live import Live, cut_short, eventually, serve, user

from sensorium.engine.client import EngineClient

PATH = "/v1/responses"
GREEDY: dict[str, Any] = {
    "model": "tiny",
    "temperature": 0,
    "max_output_tokens": 12,
    "extra_body": {"ignore_eos": True},
}
ASK: dict[str, Any] = {**GREEDY, "input": "What is that?"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def sdk(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def keeper(engine: EngineClient) -> Iterator[Live]:
    with serve(engine, served_model_name="tiny", enable_responses_store=True, api_keys=("one", "two")) as server:
        yield server


@pytest.fixture(scope="module")
def kept(keeper: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{keeper.url}/v1", api_key="one", max_retries=0, timeout=60) as client:
        yield client


def test_an_answer_comes_whole_with_its_usage(sdk: openai.OpenAI, live: Live):
    response = sdk.responses.create(**ASK, metadata={"case": "7"}, instructions="Answer briefly.")
    assert response.id.startswith("resp_")
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.metadata == {"case": "7"}
    [item] = response.output
    assert item.type == "message"
    assert response.usage is not None
    assert response.usage.output_tokens == 12
    messages = [{"role": "system", "content": "Answer briefly."}, *user("What is that?")]
    body = {"messages": messages, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    _, chat = live.post(body)
    assert response.output_text == chat["choices"][0]["message"]["content"]
    assert response.usage.input_tokens == chat["usage"]["prompt_tokens"]


def test_an_answer_that_ends_by_itself_is_complete(sdk: openai.OpenAI):
    response = sdk.responses.create(model="tiny", input="Hello", temperature=0)
    assert (response.status, response.incomplete_details) == ("completed", None)
    assert response.output_text


def test_a_stream_is_the_whole_answer_step_by_step(sdk: openai.OpenAI):
    whole = sdk.responses.create(**ASK)
    events = list(sdk.responses.create(stream=True, **ASK))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.output_text == text
    assert last.response.usage is not None
    assert whole.usage is not None
    assert last.response.usage.total_tokens == whole.usage.total_tokens


def test_the_stream_has_named_events_and_no_done(live: Live):
    body = json.dumps({"input": "Hello", "max_output_tokens": 2, "stream": True}).encode()
    _, headers, answer = live.request("POST", PATH, body, {"content-type": "application/json"})
    assert headers["content-type"].startswith("text/event-stream")
    for block in answer.decode().rstrip("\n").split("\n\n"):
        name, data = block.split("\n")
        assert name == "event: " + json.loads(data.removeprefix("data: "))["type"]


def test_media_are_seen(sdk: openai.OpenAI):
    url = samples.data_url("image/png", samples.picture())
    sound = base64.b64encode(samples.sound()).decode()
    words = {"type": "input_text", "text": "What is that?"}
    plain = sdk.responses.create(**{**GREEDY, "input": user([words])}).usage
    assert plain is not None
    for part in (
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
    ):
        used = sdk.responses.create(**{**GREEDY, "input": user([part, words])}).usage
        assert used is not None
        assert used.input_tokens > plain.input_tokens + 5


def test_items_make_a_conversation(sdk: openai.OpenAI):
    first = sdk.responses.create(**ASK)
    items: Any = [
        {"role": "developer", "content": "Answer briefly."},
        {"role": "user", "content": "What is that?"},
        *[item.model_dump() for item in first.output],
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Oslo"}'},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "Rain"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "Sun"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "So?"}]},
    ]
    response = sdk.responses.create(**{**GREEDY, "input": items})
    assert response.output_text
    assert response.usage is not None
    assert first.usage is not None
    assert response.usage.input_tokens > first.usage.input_tokens


def test_log_probabilities_come_with_the_text(sdk: openai.OpenAI):
    response = sdk.responses.create(**ASK, include=["message.output_text.logprobs"], top_logprobs=2)
    logprobs = response.output[0].content[0].logprobs
    assert len(logprobs) == 12
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs)


def test_a_tool_that_must_be_called_is_called(sdk: openai.OpenAI):
    ask: Any = {**ASK, "max_output_tokens": 100, "tools": [WEATHER], "tool_choice": "required"}
    ask |= {"parallel_tool_calls": False, "extra_body": {}}
    response = sdk.responses.create(**ask)
    [call] = response.output
    assert call.type == "function_call"
    assert call.name == "weather"
    assert isinstance(json.loads(call.arguments)["city"], str)
    events = list(sdk.responses.create(stream=True, **ask))
    pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call.arguments


def test_a_format_is_kept(sdk: openai.OpenAI):
    schema = WEATHER["parameters"]
    text: Any = {"format": {"type": "json_schema", "name": "w", "schema": schema, "strict": True}}
    response = sdk.responses.create(model="tiny", input="Weather?", temperature=0, text=text)
    assert isinstance(json.loads(response.output_text)["city"], str)


def test_leaving_a_stream_ends_the_work(sdk: openai.OpenAI, live: Live):
    long = {**ASK, "max_output_tokens": 1500}
    with cut_short(live.engine), sdk.responses.create(**long, stream=True) as stream:
        next(iter(stream))
        assert eventually(lambda: live.engine.num_requests == 1)


# ---- kept answers -------------------------------------------------------------------------------------------------


def test_a_kept_answer_is_found_and_continued(kept: openai.OpenAI):
    first = kept.responses.create(**ASK)
    assert kept.responses.retrieve(first.id).output_text == first.output_text
    second = kept.responses.create(**{**ASK, "input": "And why?"}, previous_response_id=first.id)
    items: Any = [*user("What is that?"), *[item.model_dump() for item in first.output], *user("And why?")]
    by_hand = kept.responses.create(**{**ASK, "input": items})
    assert second.output_text == by_hand.output_text
    assert second.usage is not None
    assert by_hand.usage is not None
    assert second.usage.input_tokens == by_hand.usage.input_tokens
    assert second.previous_response_id == first.id


def test_nobody_else_finds_it(kept: openai.OpenAI, keeper: Live):
    first = kept.responses.create(**ASK)
    other = kept.with_options(api_key="two")
    with pytest.raises(openai.NotFoundError):
        other.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        other.responses.create(**ASK, previous_response_id=first.id)
    forgotten = kept.responses.create(**ASK, store=False)
    with pytest.raises(openai.NotFoundError):
        kept.responses.retrieve(forgotten.id)


def test_a_client_cannot_choose_the_id(kept: openai.OpenAI):
    first = kept.responses.create(**ASK, extra_headers={"x-request-id": "mine"})
    second = kept.responses.create(**ASK, extra_headers={"x-request-id": "mine"})
    assert first.id != second.id


def test_in_the_background_it_is_made_without_the_client(kept: openai.OpenAI):
    response = kept.responses.create(**ASK, background=True)
    assert response.status in ("queued", "in_progress")
    assert response.background
    assert eventually(lambda: kept.responses.retrieve(response.id).status == "incomplete")
    assert kept.responses.retrieve(response.id).output_text == kept.responses.create(**ASK).output_text


def test_what_is_made_in_the_background_can_be_cancelled(kept: openai.OpenAI, keeper: Live):
    with cut_short(keeper.engine):
        response = kept.responses.create(**{**ASK, "max_output_tokens": 1500}, background=True)
        assert kept.responses.cancel(response.id).status == "cancelled"
    assert kept.responses.retrieve(response.id).status == "cancelled"
    finished = kept.responses.create(**ASK)
    with pytest.raises(openai.BadRequestError):
        kept.responses.cancel(finished.id)


def test_a_server_that_keeps_nothing_says_so(sdk: openai.OpenAI):
    for call in (lambda: sdk.responses.retrieve("resp_1"), lambda: sdk.responses.cancel("resp_1")):
        with pytest.raises(openai.NotFoundError, match="enable-responses-store"):
            call()


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [fields]}


def part(**fields: Any) -> dict[str, Any]:
    return item(role="user", content=[fields])


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({"input": None}, "input"),
    "an empty text": ({"input": ""}, "input"),
    "no items": ({"input": []}, "input"),
    "an item of no type": (item(content="a"), "input[0].type"),
    "an item of another type": (item(type="computer_call"), "input[0].type"),
    "a type that is none": (item(type=5), "input[0].type"),
    "another role": (item(role="tool", content="a"), "input[0].role"),
    "a part of another type": (part(type="input_file", file_id="a"), "input[0].content[0]"),
    "a picture by its file": (part(type="input_image", file_id="a"), "input[0].content[0]"),
    "a broken picture": (part(type="input_image", image_url="data:image/png;base64,AAAA"), "input[0].content[0].image"),
    "a local picture": (part(type="input_image", image_url="file:///etc/passwd"), "input[0].content[0].image_url"),
    "arguments that are no JSON": (
        item(type="function_call", call_id="a", name="f", arguments="{"),
        "input[0].arguments",
    ),
    "an unknown field of an item": (item(role="user", content="a", nmae="b"), "input[0].nmae"),
    "a template": ({"prompt": {"id": "a"}}, "prompt"),
    "what is not kept": ({"previous_response_id": "resp_1"}, "previous_response_id"),
    "the background": ({"background": True}, "background"),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "a tool of the server": ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    "tools without a parser": ({"tools": [WEATHER]}, "tool_choice"),
    "a choice of nothing": ({"tool_choice": "required"}, "tool_choice"),
    "another choice": ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
    "log-probabilities of nothing": ({"top_logprobs": 2}, "top_logprobs"),
    "two formats": (
        {"structured_outputs": {"regex": "a"}, "text": {"format": {"type": "json_object"}}},
        "structured_outputs",
    ),
    "a transfer": ({"kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    "an option that needs trust": ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs.a"),
    "arguments of extensions": ({"vllm_xargs": {"a": 1}}, "vllm_xargs"),
    "no tokens": ({"max_output_tokens": 0}, "max_output_tokens"),
    "chat's messages": ({"messages": []}, "messages"),
    "an unknown field": ({"inptu": "a"}, "inptu"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_is_named(live: Live, name: str, stream: bool):
    fields, param = HOSTILE[name]
    status, answer = live.post({"input": "a", **fields, "stream": stream}, PATH)
    assert status == 400, answer
    assert answer["error"]["param"].startswith(param), answer
