"""Answers in a given form: they fit it, they leave others alone, and what nobody can compile ends as a 400."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import ByteTokenizer, drive, prompt, request, tokens

from sensorium.engine.grammar import GrammarChecker
from sensorium.engine.protocol import Abort
from sensorium.errors import OverloadedError, RequestError
from sensorium.types import Failed, Finished, StructuredOutputs, TextDelta

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def text(events) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def structured(name: str, seed: int = 1, **kind):
    extra = {key: kind.pop(key) for key in ("max_tokens", "min_tokens", "ignore_eos", "stop_token_ids") if key in kind}
    given = {"max_tokens": 200, "temperature": 1.0, "seed": seed, "ignore_eos": False} | extra
    return request(name, prompt("form "), structured_outputs=StructuredOutputs(**kind), **given)


@pytest.fixture(scope="module")
def checker():
    made = GrammarChecker(ByteTokenizer())  # pyright: ignore
    yield made
    made.close()


@pytest.fixture
def engine(make_engine):
    made = make_engine()
    yield made
    made.fail_all("over")


def test_every_kind_yields_what_it_promises(engine) -> None:
    tag = {"structures": [{"begin": "<f>", "schema": PERSON, "end": "</f>"}], "triggers": ["<f"]}
    events = drive(
        engine,
        structured("json", json=PERSON, disable_any_whitespace=True),
        structured("regex", regex="[a-c]{3}-[0-9]{2}"),
        structured("choice", choice=("yes", "no")),
        structured("lark", grammar='start: "x" /[ab]+/ "y"', max_tokens=40),
        structured("gbnf", grammar='root ::= "on" | "off"'),
        structured("object", json_object=True, max_tokens=30),
        structured("tag", structural_tag=tag, max_tokens=30),
    )
    assert set(json.loads(text(events["json"]))) == {"name", "age"}
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", text(events["regex"]))
    assert text(events["choice"]) in ("yes", "no")
    assert re.fullmatch("x[ab]+y?", text(events["lark"]))
    assert text(events["gbnf"]) in ("on", "off")
    assert re.match(r"\s*\{", text(events["object"])) or not text(events["object"]).strip()
    assert events["regex"][-1].reason == events["choice"][-1].reason == "stop"
    assert events["regex"][-1].usage.completion_tokens == 6, "it ends with its last character, without an end token"


def test_white_space_has_an_end(engine) -> None:
    form, likes_lines = StructuredOutputs(json=PERSON), {ord("\n"): 50.0}
    asked = request(
        "a", prompt("form"), structured_outputs=form, logit_bias=likes_lines, temperature=1.0, max_tokens=300
    )
    events = drive(engine, asked)["a"]
    assert events[-1].reason == "stop"
    assert set(json.loads(text(events))) == {"name", "age"}
    assert max(map(len, re.findall(r"\s+", text(events)))) == 20


def test_neighbours_do_not_change(make_engine, engine) -> None:
    plain = [request(f"p{i}", prompt(f"hello {i}"), temperature=1.0, seed=i, max_tokens=30) for i in range(3)]
    alone = {r.id: tokens(drive(make_engine(), r)[r.id]) for r in plain}
    broken = structured("bad", regex="(")
    together = drive(engine, structured("s", json=PERSON), *plain, broken)
    assert {name: tokens(together[name]) for name in alone} == alone
    (failed,) = together["bad"]
    assert isinstance(failed, Failed)
    assert (failed.status, failed.param) == (400, "structured_outputs")


def test_a_preempted_answer_goes_on_in_its_grammar(make_engine) -> None:
    want = [structured(f"s{i}", seed=i, regex="[a-z]{60}") for i in range(4)]
    roomy, tight = make_engine(), make_engine(num_blocks=14)
    calm = drive(roomy, *want)
    pressed = drive(tight, *want)
    assert tight.stats.preemptions > 0
    assert {name: tokens(events) for name, events in pressed.items()} == {n: tokens(e) for n, e in calm.items()}
    assert all(re.fullmatch("[a-z]{60}", text(events)) for events in pressed.values())
    roomy.fail_all("over")
    tight.fail_all("over")


def test_the_form_begins_after_thinking(engine) -> None:
    end = (ord("#"),)
    events = drive(
        engine,
        request(
            "a",
            prompt("think"),
            structured_outputs=StructuredOutputs(regex="ok+", after=end),
            temperature=1.0,
            seed=3,
            max_tokens=400,
            logit_bias={ord("#"): 3.0},
        ),
    )["a"]
    before, mark, after = text(events).partition("#")
    assert before, "free text"
    assert mark
    assert after.startswith("ok")
    assert set(after[1:]) <= {"k"}


def test_the_end_of_the_form_wins_over_min_tokens_and_ignore_eos(engine) -> None:
    events = drive(
        engine,
        structured("min", regex="abc", min_tokens=50),
        structured("ignore", regex="abc", ignore_eos=True),
        structured("more", regex="ab*", min_tokens=20, max_tokens=40),
        structured("cut", regex="a{50}", max_tokens=7),
    )
    for name in ("min", "ignore"):
        assert (text(events[name]), events[name][-1].reason) == ("abc", "stop")
    assert len(text(events["more"])) >= 20
    assert (text(events["cut"]), events["cut"][-1].reason) == ("a" * 7, "length")


def test_stop_tokens_come_only_where_the_form_may_end(engine) -> None:
    events = drive(engine, structured("a", regex="(ab)+", stop_token_ids=(ord("z"),), max_tokens=60))["a"]
    assert re.fullmatch("(ab)+", text(events))
    assert tokens(events)[-1] in (256, ord("z"))


def test_a_form_that_cannot_go_on_ends_with_a_400(engine) -> None:
    wanted = request("a", prompt("x"), structured_outputs=StructuredOutputs(regex="ab"), allowed_token_ids=(ord("a"),))
    events = drive(engine, wanted)["a"]
    assert text(events) == "a"
    assert (events[-1].status, events[-1].code) == (400, "invalid_request")


def test_an_abort_while_compiling_ends_at_once(engine) -> None:
    engine.inbox.append(structured("a", json=PERSON))
    engine.step()
    engine.inbox.append(Abort("a"))
    events = []
    while engine.has_work:
        events += engine.step()
    assert [(type(event), event.reason) for event in events] == [(Finished, "abort")]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.sampled_from(
            [
                {"type": "integer", "minimum": -9, "maximum": 99},
                {"type": "boolean"},
                {"enum": ["a", "ä\n", 'q"']},
                {"type": "string", "maxLength": 4},
                {"type": "null"},
            ]
        ),
        lambda inner: (
            st.builds(lambda item: {"type": "array", "items": item, "maxItems": 2}, inner)
            | st.builds(
                lambda fields: {
                    "type": "object",
                    "properties": fields,
                    "required": list(fields),
                    "additionalProperties": False,
                },
                st.dictionaries(st.sampled_from("xyz"), inner, max_size=2),
            )
        ),
        max_leaves=4,
    )
)
def test_what_a_schema_asks_for_always_parses(engine, schema) -> None:
    name = f"s{time.monotonic_ns()}"
    wanted = structured(name, seed=5, json=schema, disable_any_whitespace=True, max_tokens=400)
    events = drive(engine, wanted)[name]
    assert events[-1].reason == "stop"
    json.loads(text(events))


BOMBS = {
    "rules": {"grammar": "start: r0\n" + "".join(f'r{i}: "a" r{i + 1}\n' for i in range(100_000)) + 'r100000: "b"'},
    "nested": {"grammar": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000},
    "nested gbnf": {"grammar": "root ::= " + "(" * 30_000 + '"a"' + ")" * 30_000},
    "enum": {"json": {"enum": list(range(1_000_000))}},
    "properties": {"json": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(100_000)}}},
}
WRONG = {
    "regex": {"regex": "a("},
    "unclosed": {"grammar": 'start: "a'},
    "cycle": {"grammar": "start: a\na: b\nb: a"},
    "self reference": {"json": {"$ref": "#"}},
    "url": {"json": {"$ref": "http://127.0.0.1:1/schema"}},
    "file": {"json": {"$ref": "file:///etc/passwd"}},
    "nothing fits": {"json": {"const": 1, "enum": [2]}},
    "false": {"json": "false"},
    "format": {"json": {"type": "string", "format": "no such format"}},
    "surrogate": {"regex": "\ud800"},
    "tag": {"structural_tag": {"structures": [{"begin": "<x>"}], "triggers": ["<x>"]}},
}


@pytest.mark.parametrize("kind", [*WRONG.values(), *BOMBS.values()], ids=[*WRONG, *BOMBS])
def test_what_cannot_be_compiled_is_refused_and_the_next_one_works(checker, kind) -> None:
    with pytest.raises(RequestError, match=r"^structured_outputs: ") as caught:
        checker.check(StructuredOutputs(**kind))
    assert len(caught.value.message) < 400
    assert checker.check(StructuredOutputs(regex="fine"))


def test_a_machine_without_time_is_not_the_requests_fault(checker, monkeypatch) -> None:
    checker.check(StructuredOutputs(regex="before"))
    os.kill(checker._worker.pid, signal.SIGSTOP)
    os.waitpid(checker._worker.pid, os.WUNTRACED)  # until all of its threads have stopped
    monkeypatch.setattr("sensorium.engine.grammar._WALL_S", 0.2)
    with pytest.raises(OverloadedError, match="no processor time"):
        checker.check(StructuredOutputs(regex="while it is stopped"))
    monkeypatch.undo()
    assert checker.check(StructuredOutputs(regex="while it is stopped")), "not remembered as an error"


def test_results_are_kept_within_bounds(checker, monkeypatch) -> None:
    monkeypatch.setattr("sensorium.engine.grammar._CACHE_BYTES", 2000)
    for i in range(200):
        checker.check(StructuredOutputs(regex=f"r{i}"))
    assert checker._known_bytes <= 2000
    assert 0 < len(checker._known) < 50


def test_objects_can_be_closed(checker) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    grammar = checker.check(StructuredOutputs(json=schema, disable_additional_properties=True))
    assert re.sub(r"\s", "", grammar).count('"additionalProperties":false') == 2
