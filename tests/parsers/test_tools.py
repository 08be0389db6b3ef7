"""Tool parsers: what each notation means, and that a stream says the same as the whole text however it is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.errors import RequestError
from sensorium.parsers.json_calls import ObjectArray
from sensorium.parsers.tools import TOOL_PARSERS, NamedCall, calls_schema, tool_parser
from sensorium.parsers.writing import CallDelta, ToolParser, split_at

TOOLS = [
    {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "exact": {"type": "boolean"},
                "where": {"type": "object"},
                "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
        },
    },
    {"name": "now"},
]
PARSERS = {
    **{name: lambda name=name: tool_parser(name, TOOLS) for name in TOOL_PARSERS},
    "required": ObjectArray,
    "named": lambda: NamedCall("weather"),
}
Parsed = tuple[str, list[tuple[str, str]]]


def read(parser: ToolParser, pieces: list[str]) -> Parsed:
    """Content and (name, arguments), put together as clients do it."""
    content = ""
    calls: list[list[str]] = []
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
    for delta in deltas:
        if isinstance(delta, str):
            content += delta
        elif delta.name is not None:
            assert delta.index == len(calls)
            calls.append([delta.name, delta.arguments])
        else:
            assert delta.index == len(calls) - 1
            calls[-1][1] += delta.arguments
    return content, [(name, arguments) for name, arguments in calls]


CASES: list[tuple[str, str, str, list[tuple[str, Any]]]] = [
    ("hermes", "Hello", "Hello", []),
    ("hermes", "a <b> </tool_call> c ", "a <b> </tool_call> c ", []),
    (
        "hermes",
        'Let me see.\n\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn }\\" {"}}\n</tool_call>\n',
        "Let me see.",
        [("weather", {"city": 'Bonn }" {'})],
    ),
    (
        "hermes",
        '<tool_call>{"arguments": {"days": 2}, "name": "weather"}</tool_call>\n<tool_call>{"name": "now"}</tool_call>',
        "",
        [("weather", {"days": 2}), ("now", {})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": "{\\"days\\": 2}"}</tool_call> done',
        " done",
        [("weather", {"days": 2})],
    ),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [("now", {})]),
    ("hermes", '<tool_call>{"name": "now", "arguments": {}</tool_call>after', "after", [("now", {})]),
    ("hermes", "<tool_call>no JSON</tool_call> x", "<tool_call>no JSON</tool_call> x", []),
    ("hermes", '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
    ("hermes", '<tool_call>{"na', '<tool_call>{"na', []),
    (
        "internlm",
        'Yes.<|action_start|><|plugin|>\n{"name": "weather", "parameters": {"days": 1}}<|action_end|>',
        "Yes.",
        [("weather", {"days": 1})],
    ),
    ("llama3_json", ' {"name": "weather", "parameters": {"city": "Rom"}}', "", [("weather", {"city": "Rom"})]),
    (
        "llama3_json",
        '<|python_tag|>{"name": "now", "parameters": {}}; {"name": "weather", "parameters": {"days": 3}}',
        "",
        [("now", {}), ("weather", {"days": 3})],
    ),
    ("llama3_json", '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
    ("llama3_json", 'See {"name": "now", "parameters": {}}', 'See {"name": "now", "parameters": {}}', []),
    (
        "pythonic",
        "[weather(city='Bonn', days=-2, where={'a': [1, None, True]}), now()]",
        "",
        [("weather", {"city": "Bonn", "days": -2, "where": {"a": [1, None, True]}}), ("now", {})],
    ),
    ("pythonic", "[1, 2] is a list", "[1, 2] is a list", []),
    ("pythonic", "[weather(city=open('x'))]", "[weather(city=open('x'))]", []),
    ("pythonic", "[weather('Bonn')]", "[weather('Bonn')]", []),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rom"}}, {"name": "now", "arguments": {}}]',
        "",
        [("weather", {"city": "Rom"}), ("now", {})],
    ),
    (
        "mistral",
        'So:[TOOL_CALLS]weather[ARGS]{"city": "]"}[TOOL_CALLS]now{}',
        "So:",
        [("weather", {"city": "]"}), ("now", {})],
    ),
    ("mistral", "[TOOL_CALLS]what is this", "[TOOL_CALLS]what is this", []),
    (
        "minicpm",
        'First.\n<|tool_call_start|>\n```python\nweather(city="Bonn")\nnow()\n```\n<|tool_call_end|>',
        "First.",
        [("weather", {"city": "Bonn"}), ("now", {})],
    ),
    ("minicpm", "<|tool_call_start|>x = 1<|tool_call_end|>", "<|tool_call_start|>x = 1<|tool_call_end|>", []),
    (
        "qwen3_coder",
        "OK\n<tool_call>\n<function=weather>\n<parameter=city>\n5 <b>\nx\n</parameter>\n"
        "<parameter=days>\n5\n</parameter>\n<parameter=exact>True</parameter><parameter=where>{}</parameter><parameter=unit>null</parameter>"
        "<parameter=else>7</parameter>\n</function>\n</tool_call>\n<tool_call><function=now></function></tool_call>",
        "OK",
        [
            ("weather", {"city": "5 <b>\nx", "days": 5, "exact": True, "where": {}, "unit": None, "else": "7"}),
            ("now", {}),
        ],
    ),
    ("qwen3_xml", "a <function> b", "a <function> b", []),
    (
        "required",
        '[{"name": "weather", "parameters": {"city": "[{"}},\n {"name": "now", "parameters": {}}]',
        "",
        [("weather", {"city": "[{"}), ("now", {})],
    ),
    ("named", '{"city": "Bonn"}', "", [("weather", {"city": "Bonn"})]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "content", "calls"), CASES)
def test_notation(name: str, text: str, content: str, calls: list[tuple[str, Any]]):
    found, found_calls = read(PARSERS[name](), [text])
    assert found == content
    assert [(name, json.loads(arguments)) for name, arguments in found_calls] == calls


@pytest.mark.parametrize(("name", "text"), [case[:2] for case in CASES])
def test_character_by_character_and_cut_off_anywhere(name: str, text: str):
    for end in range(len(text) + 1):
        assert read(PARSERS[name](), list(text[:end])) == read(PARSERS[name](), [text[:end]])


BITS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|tool_call_start|>",
        "<|tool_call_end|>", "<|action_start|><|plugin|>", "<|action_end|>", "<function=", "</function>",
        "<parameter=", "</parameter>", ">", '{"name": "now", "arguments": {', '{"name": "now", "parameters": {"a": 1',
        "}", "}}", '"', "\\", "[", "]", ",", ";", " ", "\n", "now(", "a=1", ")", "<", "{", '"name"', '"arguments"', ":",
        "x", "é", "null",
    ]
)  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
@given(bits=st.lists(BITS, max_size=24), data=st.data())
def test_any_split_of_any_text_says_the_same(name: str, bits: list[str], data: st.DataObject):
    text = "".join(bits)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(PARSERS[name](), pieces) == read(PARSERS[name](), [text])


@pytest.mark.parametrize("name", ["hermes", "mistral", "llama3_json", "qwen3_coder"])
def test_arguments_come_before_the_call_is_over(name: str):
    begun = {
        "hermes": '<tool_call>{"name": "weather", "arguments": {"city": "Bo',
        "mistral": '[TOOL_CALLS]weather{"city": "Bo',
        "llama3_json": '{"name": "weather", "parameters": {"city": "Bo',
        "qwen3_coder": "<tool_call><function=weather><parameter=city>Bonn</parameter>",
    }[name]
    deltas = tool_parser(name, TOOLS).feed(begun)
    assert deltas[0] == CallDelta(0, "weather")
    assert isinstance(deltas[1], CallDelta)
    assert deltas[1].arguments.startswith('{"city": "Bo')


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(RequestError, match="hermes, internlm"):
        tool_parser("hermess", TOOLS)


def test_definitions_of_tools_move_to_the_top():
    def tool(name: str, kind: str) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": kind}}}
        return {"name": name, "parameters": parameters}

    schema = calls_schema([tool("f", "string"), tool("g", "string")], parallel=False)
    assert schema["$defs"] == {"A": {"type": "string"}}
    assert schema["maxItems"] == 1
    assert [option["properties"]["name"]["enum"] for option in schema["items"]["anyOf"]] == [["f"], ["g"]]
    with pytest.raises(RequestError, match="different"):
        calls_schema([tool("f", "string"), tool("g", "integer")], parallel=True)


def test_text_is_split_at_the_first_mark():
    assert split_at("a<b>c", ["<b>"]) == ("a", "<b>", "c")
    assert split_at("a<b", ["<b>"]) == ("a", None, "<b")
    assert split_at("a<c", ["<b>"]) == ("a<c", None, "")
