"""Tools, structured output and reasoning through the openai SDK, on the packaged model: rules make it write what is
needed, and its parsers read that back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from server.live import Live, serve, user

from sensorium.engine.client import EngineClient

QUESTION: Any = user("What is the weather in Bonn?")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": SCHEMA}}
NOW: Any = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}},
}
PLAIN: Any = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 200}
CALL = r'Sure\.\n<tool_call>\n\{"name": "weather", "arguments": \{"city": "Bonn"\}\}\n</tool_call>'


@pytest.fixture(scope="module")
def tooled(engine: EngineClient) -> Iterator[Live]:
    parsers = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True, "reasoning_parser": "qwen3"}
    with serve(engine, served_model_name="tiny", **parsers) as server:
        yield server


@pytest.fixture(scope="module")
def sdk(tooled: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tooled.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def plain(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def whole(client: openai.OpenAI, **fields: Any) -> dict[str, Any]:
    return client.chat.completions.create(**{**PLAIN, **fields}).choices[0].model_dump()


def streamed(client: openai.OpenAI, **fields: Any) -> dict[str, Any]:
    """The same choice put together from its chunks."""
    content, reasoning, reason = "", "", None
    calls: list[dict[str, Any]] = []
    for chunk in client.chat.completions.create(**{**PLAIN, **fields}, stream=True):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning", None) or ""
            reason = choice.finish_reason or reason
            for call in choice.delta.tool_calls or []:
                assert call.function is not None
                if call.id:
                    assert call.index == len(calls)
                    assert call.id.startswith("chatcmpl-tool-")
                    calls.append({"name": call.function.name, "arguments": ""})
                calls[call.index]["arguments"] += call.function.arguments or ""
    return {"content": content, "reasoning": reasoning, "calls": calls, "reason": reason}


def same(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice["message"]
    calls = [{key: call["function"][key] for key in ("name", "arguments")} for call in message.get("tool_calls") or []]
    return {
        "content": message["content"] or "",
        "reasoning": message["reasoning"] or "",
        "calls": calls,
        "reason": choice["finish_reason"],
    }


def test_a_required_tool_is_called_with_arguments_that_fit(plain: openai.OpenAI):
    fields: Any = {"tools": [WEATHER, NOW], "tool_choice": "required", "parallel_tool_calls": False}
    choice = whole(plain, **fields)
    [call] = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert call["function"]["name"] in ("weather", "now")
    assert set(json.loads(call["function"]["arguments"])) <= {"city", "days"}
    assert streamed(plain, **fields) == same(choice)


def test_a_named_tool_gets_its_arguments_and_ends_with_stop(plain: openai.OpenAI):
    fields: Any = {"tools": [WEATHER, NOW], "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    choice = whole(plain, **fields)
    [call] = choice["message"]["tool_calls"]
    assert (call["function"]["name"], choice["finish_reason"]) == ("weather", "stop")
    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
    assert streamed(plain, **fields) == same(choice)


def test_a_call_that_is_cut_off_says_so(plain: openai.OpenAI):
    choice = whole(plain, tools=[WEATHER], tool_choice="required", max_tokens=8)
    assert choice["finish_reason"] == "length"


def test_calls_the_model_chooses_are_read_from_its_text(sdk: openai.OpenAI):
    fields: Any = {"tools": [WEATHER], "extra_body": {"structured_outputs": {"regex": CALL}}}
    fields["extra_body"]["chat_template_kwargs"] = {"enable_thinking": False}
    choice = whole(sdk, **fields)
    assert choice["message"]["content"] == "Sure."
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Bonn"}'}
    assert choice["finish_reason"] == "tool_calls"
    assert streamed(sdk, **fields) == same(choice)


def test_no_tool_is_called_with_none(sdk: openai.OpenAI):
    extra = {"structured_outputs": {"regex": CALL}, "chat_template_kwargs": {"enable_thinking": False}}
    choice = whole(sdk, tools=[WEATHER], tool_choice="none", extra_body=extra)
    assert "<tool_call>" in choice["message"]["content"]
    assert "tool_calls" not in choice["message"] or not choice["message"]["tool_calls"]


def test_auto_without_the_flags_names_them(plain: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match=r"--enable-auto-tool-choice and --tool-call-parser"):
        whole(plain, tools=[WEATHER])


def test_a_conversation_with_calls_and_results_goes_on(plain: openai.OpenAI):
    first = whole(plain, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    call = first["message"]["tool_calls"][0]
    messages: Any = [
        *QUESTION,
        {key: value for key, value in first["message"].items() if value is not None},
        {"role": "tool", "tool_call_id": call["id"], "content": [{"type": "text", "text": "Rain"}]},
    ]
    again = plain.chat.completions.create(
        **{**PLAIN, "messages": messages, "max_tokens": 4}, extra_body={"return_prompt_text": True}
    )
    text = again.model_dump()["prompt_text"]
    assert '<tool_call>\n{"name": "weather", "arguments": {' in text
    assert "<tool_response>\nRain\n</tool_response>" in text


def test_tools_are_in_the_prompt_unless_left_out(engine: EngineClient, plain: openai.OpenAI):
    body: Any = {**PLAIN, "tools": [WEATHER], "tool_choice": "none", "max_tokens": 1}
    extra = {"return_prompt_text": True}
    assert (
        "weather"
        in plain.chat.completions.create(**body, extra_body=extra).model_dump()["prompt_text"].split("user")[0]
    )
    with (
        serve(engine, served_model_name="tiny", exclude_tools_when_tool_choice_none=True) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        text = client.chat.completions.create(**body, extra_body=extra).model_dump()["prompt_text"]
        assert "<tools>" not in text


# ---- reasoning ----


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def thinking(**more: Any) -> dict[str, Any]:
    """A conversation in which the model is in the midst of thinking, and soon made to answer Yes."""
    messages = [*QUESTION, {"role": "assistant", "content": "<think>\nSo"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False, "thinking_token_budget": 2}
    extra["min_tokens"] = 3  # it would rather end than think
    return {"messages": messages, "extra_body": {**extra, "structured_outputs": {"regex": "Yes[.]"}, **more}}


@pytest.fixture(scope="module")
def thinker(engine: EngineClient) -> Iterator[openai.OpenAI]:
    settings: Any = {"reasoning_parser": "qwen3", "chat_template": TEMPLATE, "served_model_name": "tiny"}
    with (
        serve(engine, **settings) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        yield client


def test_reasoning_is_told_apart_and_rules_hold_for_the_answer_only(thinker: openai.OpenAI):
    fields = thinking()
    completion = thinker.chat.completions.create(**{**PLAIN, **fields})
    message = completion.choices[0].message.model_dump()
    assert message["content"] == "Yes."
    assert message["reasoning"] == message["reasoning_content"]
    assert message["reasoning"]
    assert "think>" not in message["reasoning"]
    assert completion.usage is not None
    assert completion.usage.completion_tokens_details is not None
    assert completion.usage.completion_tokens_details.reasoning_tokens == 3
    assert streamed(thinker, **fields) == same(completion.choices[0].model_dump())


def test_reasoning_can_be_left_out(thinker: openai.OpenAI):
    fields = thinking(include_reasoning=False)
    choice = whole(thinker, **fields, logprobs=True)
    assert choice["message"]["content"] == "Yes."
    assert choice["message"]["reasoning"] is None
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]).startswith("Yes.")
    assert streamed(thinker, **fields) == same(choice)


@pytest.mark.parametrize(("effort", "thinks"), [("none", False), ("high", True)])
def test_effort_switches_thinking(sdk: openai.OpenAI, effort: Any, thinks: bool):
    extra = {"return_prompt_text": True}
    completion = sdk.chat.completions.create(
        **{**PLAIN, "max_tokens": 1}, reasoning_effort=effort, extra_body=extra
    ).model_dump()
    assert completion["prompt_text"].endswith("</think>\n\n") is not thinks


# ---- structured output ----


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA}}},
        {"extra_body": {"structured_outputs": {"json": SCHEMA}}},
        {"extra_body": {"guided_json": SCHEMA}},
    ],
)
def test_an_answer_fits_its_schema(plain: openai.OpenAI, fields: dict[str, Any]):
    assert set(json.loads(whole(plain, **fields)["message"]["content"])) <= {"city", "days"}


def test_an_answer_is_one_of_the_choices(plain: openai.OpenAI):
    for extra in ({"structured_outputs": {"choice": ["red", "blue"]}}, {"guided_choice": ["red", "blue"]}):
        assert whole(plain, extra_body=extra)["message"]["content"] in ("red", "blue")


def test_a_rule_that_makes_no_sense_is_refused_before_anything_runs(plain: openai.OpenAI):
    for extra in ({"guided_regex": "("}, {"structured_outputs": {"json": {"type": "nonsense"}}}):
        with pytest.raises(openai.BadRequestError):
            whole(plain, extra_body=extra)


IMPOSSIBLE = {"type": "object", "properties": {"a": {"type": "nonsense"}}, "required": ["a"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": IMPOSSIBLE}}
SAID: dict[str, Any] = {"messages": QUESTION, "max_tokens": 20}
DOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {**SAID, "response_format": FORMAT}),
    "chat by a tool": (
        "/v1/chat/completions",
        {**SAID, "tools": [{"type": "function", "function": {"name": "f", "parameters": IMPOSSIBLE}}]},
    ),
    "completions": ("/v1/completions", {"prompt": "a", "max_tokens": 20, "response_format": FORMAT}),
    "responses": (
        "/v1/responses",
        {"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": IMPOSSIBLE}}},
    ),
    "responses by a tool": (
        "/v1/responses",
        {"input": "a", "tools": [{"type": "function", "name": "f", "parameters": IMPOSSIBLE}]},
    ),
    "messages": (
        "/v1/messages",
        {"model": "tiny", **SAID, "output_config": {"format": {"type": "json_schema", "schema": IMPOSSIBLE}}},
    ),
    "messages by a tool": (
        "/v1/messages",
        {"model": "tiny", **SAID, "tools": [{"name": "f", "input_schema": IMPOSSIBLE}], "tool_choice": {"type": "any"}},
    ),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("name", DOORS)
def test_a_schema_that_cannot_be_kept_is_a_plain_error(live: Live, name: str, stream: bool):
    path, body = DOORS[name]
    if "tools" in body and "tool_choice" not in body:
        body = {**body, "tool_choice": "required"}
    status, answer = live.post({**body, "stream": stream}, path)
    assert status == 400, answer
    assert answer["error"]["type"] in ("invalid_request_error", "BadRequestError")
    assert "nonsense" in answer["error"]["message"]
