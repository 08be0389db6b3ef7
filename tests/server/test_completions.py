"""/v1/completions with the openai SDK: every prompt form, echo and scores, streams, limits, leaving early."""

from __future__ import annotations

import json
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import openai
import pytest
from server.bodies import OK
from server.live import Live, cut_short, serve, user

GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 8, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def sdk(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def ids_of(live: Live, text: str) -> list[int]:
    return live.post({"prompt": text}, "/tokenize")[1]["tokens"]


def test_every_form_of_a_prompt_gives_the_same_text(sdk: openai.OpenAI, live: Live):
    ids = ids_of(live, "The picture shows")
    one = sdk.completions.create(prompt="The picture shows", **GREEDY)
    assert one.id.startswith("cmpl-")
    assert one.object == "text_completion"
    text = one.choices[0].text
    assert text
    assert one.usage is not None
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (len(ids), 8)
    for prompt in (["The picture shows"], ids, [ids]):
        assert sdk.completions.create(prompt=prompt, **GREEDY).choices[0].text == text


def test_choices_are_numbered_prompt_by_prompt(sdk: openai.OpenAI):
    prompts = ["One", "Two", "Three"]
    alone = [sdk.completions.create(prompt=prompt, **GREEDY).choices[0].text for prompt in prompts]
    both = sdk.completions.create(prompt=prompts, n=2, **GREEDY)
    assert [choice.index for choice in both.choices] == list(range(6))
    assert [choice.text for choice in both.choices] == [text for text in alone for _ in range(2)]
    assert both.usage is not None
    assert both.usage.completion_tokens == 48


def test_more_prompts_than_the_engine_takes_at_once(sdk: openai.OpenAI, live: Live):
    count = live.engine.config.max_num_seqs + live.engine.config.max_waiting + 4
    answer = sdk.completions.create(prompt=[f"Number {i}" for i in range(count)], **{**GREEDY, "max_tokens": 2})
    assert [choice.index for choice in answer.choices] == list(range(count))


def test_sixteen_tokens_unless_said_otherwise(sdk: openai.OpenAI):
    answer = sdk.completions.create(prompt="Once", model="tiny", temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_a_stream_is_the_whole_text_in_pieces(sdk: openai.OpenAI):
    arguments: dict[str, Any] = {**GREEDY, "prompt": ["One", "Two"], "echo": True, "logprobs": 1}
    whole = sdk.completions.create(**arguments)
    texts, tokens = ["", ""], [list[str](), list[str]()]
    chunks = list(sdk.completions.create(stream=True, stream_options={"include_usage": True}, **arguments))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs:
                tokens[choice.index] += choice.logprobs.tokens or []
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices if choice.logprobs]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_log_probabilities_line_up_with_the_text(sdk: openai.OpenAI):
    more: Any = GREEDY["extra_body"] | {"skip_special_tokens": False}  # else the report tells more than the text
    arguments: Any = GREEDY | {"extra_body": more}
    choice = sdk.completions.create(prompt="Hello there", echo=True, logprobs=2, **arguments).choices[0]
    report = choice.logprobs
    assert report is not None
    assert report.tokens
    assert report.text_offset
    assert report.token_logprobs
    assert report.top_logprobs
    assert "".join(report.tokens).startswith("Hello there")
    for token, offset in zip(report.tokens, report.text_offset, strict=True):
        assert "�" in token or choice.text[offset : offset + len(token)] == token
    assert report.token_logprobs[0] is None
    assert report.top_logprobs[0] is None
    for logprob, top in zip(report.token_logprobs[1:], report.top_logprobs[1:], strict=True):
        assert 2 <= len(top) <= 3
        assert logprob in top.values()
        assert max(top.values()) >= logprob


def test_scoring_generates_nothing(sdk: openai.OpenAI):
    arguments: dict[str, Any] = {"prompt": "Hello there", "echo": True, "logprobs": 1, "model": "tiny"}
    scored = sdk.completions.create(**arguments, max_tokens=0)
    assert scored.choices[0].text == "Hello there"
    assert scored.usage is not None
    assert scored.usage.completion_tokens == 0
    assert scored.choices[0].finish_reason == "length"
    longer = sdk.completions.create(**arguments, max_tokens=3)
    assert scored.choices[0].logprobs
    assert longer.choices[0].logprobs
    count = len(scored.choices[0].logprobs.tokens or [])
    assert count == scored.usage.prompt_tokens
    before = (longer.choices[0].logprobs.token_logprobs or [])[1:count]
    assert (scored.choices[0].logprobs.token_logprobs or [])[1:] == pytest.approx(before, abs=1e-4)


def test_a_likelihood_as_lm_eval_asks_for_it(sdk: openai.OpenAI, live: Live):
    """The payload and the reading of lm-eval's local-completions: the continuation that the model itself would say
    is greedy and likelier than another one."""
    context = ids_of(live, "What is that?")
    status, said = live.post(
        {"prompt": context, "max_tokens": 3, "temperature": 0, "ignore_eos": True, "return_token_ids": True},
        "/v1/completions",
    )
    assert status == OK
    continuation = said["choices"][0]["token_ids"]
    other = [token + 1 for token in continuation]
    payload = {
        "model": "tiny",
        "prompt": [context + continuation, context + other],
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    status, answer = live.post(payload, "/v1/completions")
    assert status == OK
    results = []
    for choice in sorted(answer["choices"], key=itemgetter("index")):
        logprobs = choice["logprobs"]["token_logprobs"][len(context) : -1]
        tops = choice["logprobs"]["top_logprobs"][len(context) : -1]
        assert len(logprobs) == 3
        greedy = all(own == max(top.values()) for own, top in zip(logprobs, tops, strict=True))
        results.append((sum(logprobs), greedy))
    assert results[0][1]
    assert not results[1][1]
    assert results[0][0] > results[1][0]


def test_the_best_of_many_are_the_likeliest(live: Live):
    body = {"prompt": "Once", "temperature": 1.2, "seed": 3, "max_tokens": 6, "ignore_eos": True, "logprobs": 0}
    _, all_ = live.post({**body, "n": 4}, "/v1/completions")
    _, best = live.post({**body, "n": 2, "best_of": 4}, "/v1/completions")
    ranked = sorted(all_["choices"], key=lambda choice: -sum(choice["logprobs"]["token_logprobs"]))
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in ranked[:2]]
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == 24


def test_leaving_a_stream_ends_all_its_work(sdk: openai.OpenAI, live: Live):
    long = {**GREEDY, "max_tokens": 1500}
    with (
        cut_short(live.engine, 2 * 1500),
        sdk.completions.create(prompt=["One", "Two"], stream=True, **long) as stream,
    ):
        next(iter(stream))
        assert live.engine.num_requests == 2


HOSTILE: dict[str, tuple[Any, str]] = {
    "no prompt": ({}, "prompt"),
    "null": ({"prompt": None}, "prompt"),
    "an empty text": ({"prompt": ""}, "prompt"),
    "an empty list": ({"prompt": []}, "prompt"),
    "an empty prompt among others": ({"prompt": ["a", ""]}, "prompt[1]"),
    "texts and ids": ({"prompt": ["a", 1]}, "prompt"),
    "ids and texts": ({"prompt": [1, "a"]}, "prompt"),
    "an id past the vocabulary": ({"prompt": [1 << 30]}, "prompt"),
    "a negative id": ({"prompt": [-1]}, "prompt[0]"),
    "too many prompts": ({"prompt": ["a"] * 1025}, "prompt"),
    "too many texts": ({"prompt": ["a"] * 1000, "n": 2}, "prompt"),
    "a prompt past the context": ({"prompt": "word " * 4000}, "prompt"),
    "a picture that is not there": ({"prompt": "<image>./</image>"}, "prompt"),
    "suffix": ({"prompt": "a", "suffix": "b"}, "suffix"),
    "embeddings": ({"prompt": "a", "prompt_embeds": "AAAA"}, "prompt_embeds"),
    "beams of a stream": ({"prompt": "a", "use_beam_search": True, "stream": True}, "stream"),
    "more beams than answers": ({"prompt": "a", "use_beam_search": True, "best_of": 2}, "best_of"),
    "a length penalty without beams": ({"prompt": "a", "length_penalty": 2.0}, "length_penalty"),
    "scores of the prompt in a stream": ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    "a side without a cut": ({"prompt": "a", "truncation_side": "left"}, "truncation_side"),
    "a cut to nothing": ({"prompt": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    "seventeen stops": ({"prompt": "a", "stop": ["a"] * 17}, "stop"),
    "seventeen answers": ({"prompt": "a", "n": 17}, "n"),
    "a transfer": ({"prompt": "a", "kv_transfer_params": {"a": 1}}, "kv_transfer_params"),
    "arguments of extensions": ({"prompt": "a", "vllm_xargs": {"a": 1}}, "vllm_xargs"),
    "a priority that nobody heeds": ({"prompt": "a", "priority": 1 << 40}, "priority"),
    "nothing to do": ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    "fewer than n": ({"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
    "the best of a stream": ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
    "too many log-probabilities": ({"prompt": "a", "logprobs": 21}, "logprobs"),
    "chat's log-probabilities": ({"prompt": "a", "top_logprobs": 2}, "top_logprobs"),
    "options of a stream": ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
    "messages": ({"messages": []}, "messages"),
    "unknown field": ({"prompt": "a", "temprature": 1}, "temprature"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_is_named(live: Live, name: str, stream: bool):
    fields, param = HOSTILE[name]
    body = fields | ({"stream": True} if stream and "options" not in name else {})
    status, answer = live.post(body, "/v1/completions")
    assert status == 400, answer
    assert answer["error"]["param"] == param


def test_another_model_is_not_found(live: Live):
    status, answer = live.post({"prompt": "a", "model": "gpt"}, "/v1/completions")
    assert (status, answer["error"]["param"]) == (404, "model")


# ---- fields of vLLM ----


def complete(live: Live, **fields: Any) -> dict[str, Any]:
    status, answer = live.post({"temperature": 0, "max_tokens": 4, "ignore_eos": True, **fields}, "/v1/completions")
    assert status == 200, answer
    return answer


def test_a_whole_answer_has_every_field(live: Live):
    answer = complete(live, prompt="One")
    assert set(answer) == {
        "id", "object", "created", "model", "choices", "usage", "service_tier", "system_fingerprint",
        "kv_transfer_params",
    }  # fmt: skip
    assert set(answer["choices"][0]) == {
        "index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids",
    }  # fmt: skip


def test_prompts_are_scored_beside_their_answer(live: Live):
    answer = complete(live, prompt="One two three", prompt_logprobs=2, return_token_ids=True)
    [choice] = answer["choices"]
    assert choice["prompt_logprobs"][0] is None
    for token, entry in zip(choice["prompt_token_ids"][1:], choice["prompt_logprobs"][1:], strict=True):
        assert set(entry[str(token)]) == {"logprob", "rank", "decoded_token"}
        assert len(entry) in (2, 3)
    both = complete(live, prompt="One two three", prompt_logprobs=3, echo=True, logprobs=1)["choices"][0]
    scores = both["logprobs"]["token_logprobs"][1 : len(both["prompt_logprobs"])]
    ids = choice["prompt_token_ids"][1:]
    own = [entry[str(token)]["logprob"] for token, entry in zip(ids, both["prompt_logprobs"][1:], strict=True)]
    assert scores == own
    assert all(len(top) <= 2 for top in both["logprobs"]["top_logprobs"][1:])


def test_tokens_by_their_ids(live: Live):
    [choice] = complete(
        live, prompt="One", logprobs=1, return_tokens_as_token_ids=True, return_token_ids=True, echo=True
    )["choices"]
    ids = [*choice["prompt_token_ids"], *choice["token_ids"]]
    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in ids]
    plain = complete(live, prompt="One", logprobs=1, echo=True)["choices"][0]["logprobs"]
    assert choice["logprobs"]["text_offset"] == plain["text_offset"]


def test_prompts_are_cut_at_the_side_asked_for(live: Live):
    whole = ids_of(live, "One two three four five")
    for fields, kept in (
        ({"truncate_prompt_tokens": 3}, whole[-3:]),
        ({"truncate_prompt_tokens": 3, "truncation_side": "right"}, whole[:3]),
        ({"truncate_prompt_tokens": -1}, whole),
    ):
        [choice] = complete(live, prompt="One two three four five", return_token_ids=True, **fields)["choices"]
        assert choice["prompt_token_ids"] == kept
    long = complete(live, prompt="word " * 6000, truncate_prompt_tokens=-1)
    assert long["usage"]["prompt_tokens"] == live.engine.max_model_len - 4


def test_beams_are_the_likeliest_texts_of_each_prompt(live: Live):
    answer = complete(live, prompt=["One", "Two"], use_beam_search=True, n=2, return_token_ids=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    alone = complete(live, prompt="Two", use_beam_search=True, n=2)
    assert [choice["text"] for choice in answer["choices"][2:]] == [choice["text"] for choice in alone["choices"]]
    assert len({tuple(choice["token_ids"]) for choice in answer["choices"]}) == 4
    assert answer["usage"]["completion_tokens"] == 16


def test_the_client_names_its_request(live: Live):
    assert complete(live, prompt="One", request_id="abc", session_id="s", cache_salt="a b")["id"] == "cmpl-abc"


def test_the_servers_flags_hold_here_too(live: Live):
    flags: dict[str, Any] = {"enable_force_include_usage": True, "enable_prompt_tokens_details": False}
    with serve(live.engine, return_tokens_as_token_ids=True, **flags) as server:
        assert complete(server, prompt="One")["usage"]["prompt_tokens_details"] is None
        logprobs = complete(server, prompt="One", logprobs=0)["choices"][0]["logprobs"]
        assert all(token.startswith("token_id:") for token in logprobs["tokens"])
        body = json.dumps({"prompt": "One", "max_tokens": 3, "stream": True}).encode()
        _, _, sent = server.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        chunks = [json.loads(frame[6:]) for frame in sent.decode().split("\n\n")[:-2]]
        assert all(chunk["usage"] for chunk in chunks)
        assert chunks[-1]["choices"] == []


def test_the_environment_says_how_many_stops_and_answers(live: Live, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_MAX_STOP_STRINGS", "20")
    monkeypatch.setenv("SENSORIUM_MAX_N_SEQUENCES", "2")
    stops = [f"<{number}>" for number in range(21)]
    with serve(live.engine) as server:
        for path, body in (
            ("/v1/completions", {"prompt": "One"}),
            ("/v1/chat/completions", {"messages": user("One")}),
            ("/v1/responses", {"input": "One"}),
        ):
            short = {"max_output_tokens": 2} if "responses" in path else {"max_tokens": 2}
            assert server.post({**body, **short, "stop": stops[:20]}, path)[0] == 200
            status, answer = server.post({**body, **short, "stop": stops}, path)
            assert (status, answer["error"]["param"]) == (400, "stop")
            assert "SENSORIUM_MAX_STOP_STRINGS" in answer["error"]["message"]
            if "responses" not in path:
                status, answer = server.post({**body, **short, "n": 3}, path)
                assert (status, answer["error"]["param"]) == (400, "n")
