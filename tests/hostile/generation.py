"""K, L: sampling, answers of a given form, tools, templates. More of these are in fields.py."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from hostile.cases import COMPLETIONS, LISTED, OK, Case, Table
from server.bodies import PNG_URL, chat, image_part, message, raw
from server.live import user

EITHER = (OK, 400)
BIG = 10**9


def prompt(value: Any, status: int | tuple[int, ...] = 400, param: str | None = "prompt", **fields: Any) -> Case:
    body = {"prompt": value, "max_tokens": 1, **fields}
    return Case(body, status, param if status == 400 else None, path=COMPLETIONS)


def form(status: int | tuple[int, ...] = 400, **fields: Any) -> Case:
    return Case(chat(structured_outputs=fields, max_tokens=8), status, "structured_outputs" if status == 400 else None)


def schema(value: Any, status: int | tuple[int, ...] = 400) -> Case:
    return form(status, json=value)


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **function}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


SAMPLING: Table = {
    "H-216 a NaN temperature": Case(raw("temperature", "NaN"), 400, "temperature"),
    "H-216 an infinite temperature": Case(raw("temperature", "Infinity"), 400, "temperature"),
    "H-217 top_p -0.1": Case(chat(top_p=-0.1), 400, "top_p"),
    "H-217 top_k beyond the vocabulary": Case(chat(top_k=10**6, temperature=1), OK),
    "H-217 top_k 0": Case(chat(top_k=0), OK),
    "H-217 typical_p": Case(chat(typical_p=0.5), 400, "typical_p"),
    "H-218 a NaN penalty": Case(raw("frequency_penalty", "NaN"), 400, "frequency_penalty"),
    "H-218 an infinite penalty": Case(raw("repetition_penalty", "1e999"), 400, "repetition_penalty"),
    "H-219 more candidates than answers": Case(chat(n=2, best_of=1), 400),
    "H-219 10^9 candidates": prompt("hi", param="best_of", best_of=BIG),
    "H-220 max_tokens null": Case(chat(max_tokens=None, stop=["e", "a", "o"]), OK),
    "H-220 max_tokens beyond the context": Case(chat(max_tokens=10**6, stop=["e", "a", "o", " "]), EITHER),
    "H-221 the first token stops, another must come": Case(chat(min_tokens=2, max_tokens=2, stop=["e", " "]), OK),
    "H-222 a NaN bias": Case(raw("logit_bias", '{"1": NaN}'), 400),
    "H-222 a bias for token 2^40": Case(chat(logit_bias={str(2**40): 1}), 400, "logit_bias"),
    "H-223 an allowed token beyond the vocabulary": Case(chat(allowed_token_ids=[2**30]), 400, "allowed_token_ids"),
    "H-223 an allowed token that spells nothing": Case(chat(allowed_token_ids=[1535]), EITHER),
    "H-224 10,000 bad words": Case(chat(bad_words=["a"] * 10_000), 400, "bad_words"),
    "H-224 a bad word of 1 MB": Case(chat(bad_words=["a" * (1 << 20)]), 400, "bad_words"),
    "H-224 a blank bad word": Case(chat(bad_words=[" "]), 400, "bad_words"),
    "H-225 a stop string of regular expressions": Case(chat(stop=[".*", "(a+)+b", "\\"]), OK),
    "H-226 a stop string over several tokens": Case(chat(stop=["the small bird is near"], max_tokens=8), OK),
    "H-227 no stop tokens": Case(chat(stop_token_ids=[]), OK),
    "H-228 log-probabilities -1": Case(chat(logprobs=True, top_logprobs=-1), 400, "top_logprobs"),
    "H-228 of 129 tokens": Case(chat(logprobs=True, logprob_token_ids=list(range(129))), 400, "logprob_token_ids"),
    "H-228 10^6 for a completion": prompt("hi", param="logprobs", logprobs=10**6),
    "H-230 NaN as seed": Case(raw("seed", "NaN"), 400, "seed"),
    "H-231 cutting to more than the context": Case(chat(truncate_prompt_tokens=10**6), EITHER),
    "H-232 an empty prompt": prompt("", EITHER),
    "H-232 no tokens": prompt([]),
    "H-232 only control tokens": prompt("<|im_end|><|im_end|>", OK),
    "H-233 a token less than the context": prompt([100] * 2047, OK),
    "H-233 the context": prompt([100] * 2048, 400, None),
    "H-233 a token more than the context": prompt([100] * 2049, 400, None),
    "H-234 129 prompts": prompt(["a"] * 129),
    "H-234 lists in lists": prompt([[[1]]]),
    "H-234 texts and ids": prompt(["a", [1]]),
    "H-234 one of them empty": prompt(["a", [], "b"], EITHER, None),
    "H-235 filling the context": prompt([100] * 1900, OK, max_tokens=148, ignore_eos=True),
    "H-237 a priority of -2^63": Case(chat(priority=-(2**63)), 400, "priority"),
    "H-237 NaN as priority": Case(raw("priority", "NaN"), 400, "priority"),
    "H-238 extension arguments": Case(chat(vllm_xargs={"logits_processor": "os.system"}), 400, "vllm_xargs"),
    "H-239 10^6 beams": Case(chat(use_beam_search=True, n=10**6), 400, "n"),
    "H-240 no model": Case(chat(model=None), OK),
    "H-241 a stream of 16 with scores": Case(
        chat(n=16, stream=True, logprobs=True, top_logprobs=20, ignore_eos=True, max_tokens=8), OK
    ),
    "H-242 a detector of repetitions": Case(chat(repetition_detection={"max_pattern_size": -1}), EITHER),
}
FEATURES: dict[str, dict[str, Any]] = {
    "a form": {"structured_outputs": {"choice": ["aa", "bb"]}},
    "penalties": {"presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.2},
    "scores": {"logprobs": True, "top_logprobs": 3},
    "scores of the prompt": {"prompt_logprobs": 2},
    "a bias": {"logit_bias": {"100": 5, "101": -100}},
    "a salt": {"cache_salt": "s"},
    "beams": {"use_beam_search": True, "n": 2},
    "two answers": {"n": 2},
    "a picture": {"messages": user([image_part(PNG_URL), "What is that?"])},
    "a stream": {"stream": True},
    "stop texts": {"stop": ["e", "xyz"], "include_stop_str_in_output": True},
    "tools": {"tools": [tool()], "tool_choice": "required"},
    "bad words": {"bad_words": ["bird"], "min_tokens": 2},
    "allowed tokens": {"allowed_token_ids": [100, 101, 102]},
    "a cut prompt": {"truncate_prompt_tokens": 64},
}
PAIRS: Table = {
    f"H-236 {a} and {b}": Case(chat(**{"max_tokens": 6, **FEATURES[a], **FEATURES[b]}), EITHER, slow=True)
    for a, b in combinations(FEATURES, 2)
}

DEEP_GRAMMAR = "start: " + "(" * 30_000 + '"a"' + ")" * 30_000
FORMS: Table = {
    "H-243 (a+)+b": form(EITHER, regex="(a+)+b"),
    "H-243 (a|a)*b": form(EITHER, regex="(a|a)*b"),
    "H-243 a{1,100000}": form(EITHER, regex="a{1,100000}"),
    "H-243 (.{1,1000}){1,1000}": form(EITHER, regex="(.{1,1000}){1,1000}"),
    "H-243 nested 20 times": form(EITHER, regex="(" * 20 + "a+" + ")+" * 20 + "b"),
    "H-243 nested 1,000 times": form(EITHER, regex="(" * 1000 + "a" + ")" * 1000),
    "H-243 guided": Case(chat(guided_regex="(.{1,1000}){1,1000}"), EITHER),
    "H-244 30,000 brackets": form(grammar=DEEP_GRAMMAR),
    "H-244 left recursion": form(EITHER, grammar='start: start "a" | "b"'),
    "H-244 a cycle": form(grammar="start: a\na: b\nb: a"),
    "H-244 an open quote": form(grammar='start: "a'),
    "H-244 50,000 rules": Case(
        lambda _: chat(
            structured_outputs={
                "grammar": "start: r0\n" + "".join(f'r{i}: "a" r{i + 1}\n' for i in range(50_000)) + 'r50000: "b"'
            }
        ),
        400,
        "structured_outputs",
        slow=True,
    ),
    "H-245 a reference to itself": schema({"$ref": "#"}),
    "H-245 two that refer to each other": schema(
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "H-245 a reference to the trap": Case(
        lambda world: chat(structured_outputs={"json": {"$ref": f"http://127.0.0.1:{world.trap.port}/s"}}),
        400,
        "structured_outputs",
    ),
    "H-245 a reference to a file": schema({"$ref": "file:///etc/passwd"}),
    "H-245 10,000 deep": Case(
        lambda _: (
            b'{"messages":[{"role":"user","content":"a"}],"structured_outputs":{"json":'
            + b'{"items":' * 10_000
            + b"{}"
            + b"}" * 10_000
            + b"}}"
        ),
        400,
    ),
    "H-245 100 deep": schema(nested(100)),
    "H-245 10^5 properties": Case(
        lambda _: chat(structured_outputs={"json": {"properties": {f"p{n}": {"type": "null"} for n in range(10**5)}}}),
        413,
    ),
    "H-245 50,000 properties": Case(
        lambda _: chat(structured_outputs={"json": {"properties": {f"p{n}": {"type": "null"} for n in range(50_000)}}}),
        EITHER,
        slow=True,
    ),
    "H-245 a choice of 10^6": Case(lambda _: chat(structured_outputs={"json": {"enum": list(range(10**6))}}), 413),
    "H-245 a choice of 10^5": Case(
        lambda _: chat(structured_outputs={"json": {"enum": list(range(10**5))}}), EITHER, slow=True
    ),
    "H-245 10^4 alternatives": Case(
        lambda _: chat(structured_outputs={"json": {"anyOf": [{"const": n} for n in range(10**4)]}}), EITHER, slow=True
    ),
    "H-245 10^9 items": schema({"type": "array", "maxItems": 10**9}, EITHER),
    "H-245 a pattern": schema({"type": "string", "pattern": "(.{1,1000}){1,1000}"}, EITHER),
    "H-245 an unknown format": schema({"type": "string", "format": "no such format"}),
    "H-246 an empty schema": schema({}, EITHER),
    "H-246 false": schema("false"),
    "H-246 an empty expression": form(EITHER, regex=""),
    "H-246 an empty grammar": form(EITHER, grammar=""),
    "H-246 no choice": form(choice=[]),
    "H-246 a choice of nothing": form(EITHER, choice=[""]),
    "H-247 a chosen backend": form(backend="outlines", regex="a"),
    "H-247 an older way to choose it": Case(chat(guided_regex="a", guided_decoding_backend="outlines"), EITHER),
    "H-249 nothing fits": schema({"const": 1, "enum": [2]}),
    "H-249 a grammar without an end": form(EITHER, grammar='start: "a" start'),
    "H-250 half a surrogate pair": Case(chat(structured_outputs={"regex": "\ud800"}), 400),
    "H-250 bytes that no token covers": form(EITHER, regex="[\\x00-\\x08]+"),
    "H-251 a stop text in the form": Case(chat(structured_outputs={"regex": "a{20}"}, stop=["aaa"], max_tokens=30), OK),
    "H-251 cut by max_tokens": Case(
        chat(structured_outputs={"regex": "a{200}"}, max_tokens=2),
        OK,
        check=lambda answer: answer["choices"][0]["finish_reason"] == "length",
    ),
}
TOOLS: Table = {
    "H-252 300 tools": Case(chat(tools=[tool(name=f"f{n}") for n in range(300)], tool_choice="required"), 400, "tools"),
    "H-252 a name of 10 KB": Case(chat(tools=[tool(name="f" * 10_240)], tool_choice="required"), 400, "tools[0]"),
    "H-252 a name with blanks": Case(chat(tools=[tool(name="f g")], tool_choice="required"), 400, "tools[0]"),
    "H-252 a name in Greek": Case(chat(tools=[tool(name="\u03c6")], tool_choice="required"), 400, "tools[0]"),
    "H-252 parameters null": Case(chat(tools=[tool(parameters=None)], tool_choice="required"), OK),
    "H-252 parameters a list": Case(chat(tools=[tool(parameters=[])], tool_choice="required"), 400, "tools[0]"),
    "H-252 recursive parameters": Case(
        chat(tools=[tool(parameters={"$ref": "#"})], tool_choice="required"), 400, slow=True
    ),
    "H-254 arguments with a key twice": Case(
        chat(
            messages=[
                *user("?"),
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}]},
                *user("?"),
            ]
        ),
        EITHER,
    ),
    "H-255 an answer to no call": Case(chat(messages=[{"role": "tool", "tool_call_id": "x", "content": "y"}]), EITHER),
    "H-255 a call's id of 1 MB": Case(
        chat(messages=[{"role": "tool", "tool_call_id": "x" * (1 << 20), "content": "y"}]),
        400,
        "messages[0].tool_call_id",
    ),
    "H-256 marks of reasoning": Case(chat(messages=user("<think>x</think></think><think>")), OK),
    "H-256 marks of calls": Case(
        chat(messages=user("<tool_call>" * 50), tools=[tool()], tool_choice="auto"), OK, server=LISTED
    ),
    **{
        f"H-258 {name}": Case(chat(chat_template_kwargs={name: value}), 400, "chat_template_kwargs")
        for name, value in {
            "tokenize": True,
            "tools": "x",
            "add_generation_prompt": {"a": 1},
            "v": "a" * (1 << 20),
        }.items()
    },
    "H-260 two systems": Case(
        chat(messages=[{"role": "system", "content": "a"}, {"role": "system", "content": "b"}]), EITHER
    ),
    "H-261 in a name": Case(message(name="{{7*7}}"), OK),
    "H-261 in a description": Case(
        chat(tools=[tool(description="{{7*7}}{% for a in b %}")], tool_choice="auto"), OK, server=LISTED
    ),
}

CASES: Table = {**SAMPLING, **PAIRS, **FORMS, **TOOLS}
