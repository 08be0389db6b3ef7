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
    ("qwen3_xml", "<function=a b>c</function>", "<function=a b>c</function>", []),
    (
        "glm45",
        "OK\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>a <b></arg_value>\n<arg_key>days</arg_key>"
        "<arg_value>5</arg_value>\n</tool_call>\n<tool_call>now</tool_call>",
        "OK",
        [("weather", {"city": "a <b>", "days": 5}), ("now", {})],
    ),
    ("glm45", "<tool_call>no call</tool_call> x", "<tool_call>no call</tool_call> x", []),
    ("glm45", "<tool_call>", "<tool_call>", []),
    ("glm45", "<tool_call>now<arg_key>a</arg_key>x</tool_call>", "", [("now", None)]),
    (
        "minicpm5",
        'First.\n<function name="weather"><param name="city"><![CDATA[a\n</b>]]></param>'
        '<param name="exact">true</param></function>\n<function name="now"></function>',
        "First.",
        [("weather", {"city": "a\n</b>", "exact": True}), ("now", {})],
    ),
    ("minicpm5", '<function name="a b">x</function>', '<function name="a b">x</function>', []),
    (
        "deepseek_v3",
        "So.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        '{"city": "}"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "So.",
        [("weather", {"city": "}"}), ("now", {})],
    ),
    (
        "deepseek_v31",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"days": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "",
        [("weather", {"days": 2})],
    ),
    (
        "deepseek_v3",
        "<｜tool▁call▁begin｜>no<｜tool▁call▁end｜> x",
        "<｜tool▁call▁begin｜>no<｜tool▁call▁end｜> x",
        [],
    ),
    (
        "kimi_k2",
        "Yes.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>"
        '{"city": "Bonn"} <|tool_call_end|><|tool_call_begin|>functions.now:1 <|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        "Yes.",
        [("weather", {"city": "Bonn"}), ("now", {})],
    ),
    (
        "kimi_k2",
        "<|tool_call_begin|>a b<|tool_call_argument_begin|>{}<|tool_call_end|>",
        "<|tool_call_begin|>a b<|tool_call_argument_begin|>{}<|tool_call_end|>",
        [],
    ),
    ("kimi_k2", "<|tool_call_begin|>now<|tool_call_argument_begin|><|tool_call_end|>", "", [("now", {})]),
    (
        "granite",
        '<|tool_call|>[{"name": "weather", "arguments": {"city": "]"}}, {"name": "now", "arguments": {}}]',
        "",
        [("weather", {"city": "]"}), ("now", {})],
    ),
    ("granite", '<tool_call> [{"arguments": {"days": 1}, "name": "weather"}]', "", [("weather", {"days": 1})]),
    ("granite", ' [{"name": "now", "arguments": {}}]', "", [("now", {})]),
    ("granite", "[1, 2] is a list", "[1, 2] is a list", []),
    ("granite", '[ {"a": 1}] is a list', '[ {"a": 1}] is a list', []),
    ("granite", "a [1] <tool_call> b", "a [1] <tool_call> b", []),
    (
        "phi4_mini_json",
        'functools[{"name": "weather", "arguments": {"days": 3}}, {"name": "now", "parameters": {}}]',
        "",
        [("weather", {"days": 3}), ("now", {})],
    ),
    ("phi4_mini_json", "import functools; functools[1]", "import functools; functools[1]", []),
    (
        "gemma4",
        'Hm.<|tool_call>call:weather{city:<|"|>a}, "b": <tool_call|><|"|>,days:-2,exact:true,'
        'where:{a:[1,null,<|"|>x<|"|>]},'
        'unit:"c"}<tool_call|><|tool_call>call:now{}<tool_call|>',
        "Hm.",
        [
            (
                "weather",
                {
                    "city": 'a}, "b": <tool_call|>',
                    "days": -2,
                    "exact": True,
                    "where": {"a": [1, None, "x"]},
                    "unit": "c",
                },
            ),
            ("now", {}),
        ],
    ),
    ("gemma4", "<|tool_call>call:f{a:}<tool_call|>", "<|tool_call>call:f{a:}<tool_call|>", []),
    ("gemma4", "<|tool_call>call:f{a:NaN,b:bare text}<tool_call|>", "", [("f", {"a": "NaN", "b": "bare text"})]),
    ("gemma4", "<|tool_call>call:f" + "{a:" * 200, "<|tool_call>call:f" + "{a:" * 200, []),
    (
        "gemma4",
        "<|tool_call>call:f" + "{a:" * 200 + "}" * 200 + "<tool_call|>",
        "<|tool_call>call:f" + "{a:" * 200 + "}" * 200 + "<tool_call|>",
        [],
    ),
    (
        "openai",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        '<|constrain|>json<|message|>{"days": 2}<|call|>',
        "",
        [("weather", {"days": 2})],
    ),
    ("openai", ' to=functions.now<|channel|>commentary json<|message|>{}<|call|>', "", [("now", {})]),
    ("openai", "<|channel|>final<|message|>Hello <|return|>", "Hello ", []),
    ("openai", "Hello to=all", "Hello to=all", []),
    (
        "openai",
        "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary "
        "to=functions.now<|message|>{}<|call|>",
        "Let me see.",
        [("now", {})],
    ),
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
    # None stands for arguments that were never begun.
    assert [(name, json.loads(arguments) if arguments else None) for name, arguments in found_calls] == calls


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
        "x", "é", "null", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", '<function name="', '">',
        '<param name="', "</param>", "<![CDATA[", "]]>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>", "<｜tool▁calls▁begin｜>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
        "<|tool_call_end|>", "<|tool_call|>", "functools", '[{"name": "now", "arguments": {', "<|tool_call>call:f{a:",
        "<tool_call|>", '<|"|>', "<|start|>",
        "<|channel|>", "analysis", "final", "to=functions.f", "<|message|>", "<|end|>", "<|call|>",
    ]
)  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
@given(bits=st.lists(BITS, max_size=24), data=st.data())
def test_any_split_of_any_text_says_the_same(name: str, bits: list[str], data: st.DataObject):
    text = "".join(bits)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(PARSERS[name](), pieces) == read(PARSERS[name](), [text])


@pytest.mark.parametrize(
    "name", ["hermes", "mistral", "llama3_json", "qwen3_coder", "kimi_k2", "deepseek_v3", "glm45", "granite", "openai"]
)
def test_arguments_come_before_the_call_is_over(name: str):
    begun = {
        "hermes": '<tool_call>{"name": "weather", "arguments": {"city": "Bo',
        "mistral": '[TOOL_CALLS]weather{"city": "Bo',
        "llama3_json": '{"name": "weather", "parameters": {"city": "Bo',
        "qwen3_coder": "<tool_call><function=weather><parameter=city>Bonn</parameter>",
        "kimi_k2": '<|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{"city": "Bo',
        "deepseek_v3": '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Bo',
        "glm45": "<tool_call>weather<arg_key>city</arg_key><arg_value>Bonn</arg_value>",
        "granite": '<tool_call>[{"name": "weather", "arguments": {"city": "Bo',
        "openai": '<|channel|>commentary to=functions.weather<|message|>{"city": "Bo',
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
