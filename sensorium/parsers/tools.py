"""Tool parsers by name, and the rules for calls that a grammar enforces."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sensorium.errors import RequestError
from sensorium.parsers.code_calls import PythonList, TaggedCode
from sensorium.parsers.harmony import SPELLINGS, Harmony
from sensorium.parsers.json_calls import LeadingObjects, NestedValue, ObjectArray, TaggedObjects
from sensorium.parsers.marked_calls import (
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    KIMI,
    BracedCalls,
    MarkedArray,
    SeparatedCalls,
)
from sensorium.parsers.tag_calls import GLM, MINICPM, QWEN, ParameterTags
from sensorium.parsers.writing import Buffered, CallDelta, ToolParser, Writer, split_at

Tools = Sequence[Mapping[str, Any]]
"""The functions of a request: name, description, parameters."""


class Mistral(Buffered):
    """[TOOL_CALLS] and then an array of objects, or name{arguments} or name[ARGS]{arguments} for each call."""

    MARK, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"

    def __init__(self) -> None:
        super().__init__()
        self._state = "text"
        self._array = ObjectArray(("arguments", "parameters"), self._writer)
        self._value = NestedValue()

    def finish(self) -> list[str | CallDelta]:
        if self._state == "text":
            self._writer.text(self._buffer)
        elif self._state in ("opening", "name"):
            self._writer.text(self.MARK + self._buffer)
        elif self._state == "array":
            self._writer.text(self._array.unread())
        return self._writer.end()

    def _step(self) -> bool:
        if self._state == "text":
            before, mark, self._buffer = split_at(self._buffer, [self.MARK])
            self._writer.text(before)
            self._state = "opening" if mark else "text"
            return mark is not None
        if self._state == "opening":
            stripped = self._buffer.lstrip()
            self._state = "opening" if not stripped else "array" if stripped[0] == "[" else "name"
            return bool(stripped)
        if self._state == "array":
            self._buffer = self._array.read(self._buffer)
            if self._array.done:
                self._array = ObjectArray(("arguments", "parameters"), self._writer)
                self._state = "text"
                return True
            return False
        return self._read_name() if self._state == "name" else self._read_arguments()

    def _read_name(self) -> bool:
        name, brace, rest = self._buffer.partition("{")
        if not brace:
            return False
        name = name.strip().removesuffix(self.ARGUMENTS).strip()
        if re.fullmatch(r"[\w.:-]+", name):
            self._writer.begin(name)
            self._value = NestedValue()
            self._buffer, self._state = brace + rest, "arguments"
        else:
            self._writer.text(self.MARK + self._buffer[: self._buffer.index("{")])
            self._buffer, self._state = brace + rest, "text"
        return True

    def _read_arguments(self) -> bool:
        value, self._buffer, ended = self._value.split(self._buffer)
        self._writer.arguments(value)
        if ended:
            self._state = "text"
        return ended


class NamedCall:
    """An answer that is nothing but the arguments of one function: what a named tool_choice is made to write."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._writer = Writer()

    def feed(self, text: str) -> list[str | CallDelta]:
        if not self._writer.calls and text:
            self._writer.begin(self._name)
        self._writer.arguments(text)
        return self._writer.take()

    def finish(self) -> list[str | CallDelta]:
        return self._writer.end()


_GRANITE = ("<|tool_call|>", "<tool_call>")
TOOL_PARSERS: dict[str, tuple[Callable[[Tools], ToolParser], tuple[str, ...]]] = {
    "deepseek_v3": (lambda tools: SeparatedCalls(DEEPSEEK_V3), DEEPSEEK_V3.spellings),
    "deepseek_v31": (lambda tools: SeparatedCalls(DEEPSEEK_V31), DEEPSEEK_V31.spellings),
    "gemma4": (lambda tools: BracedCalls(), ("<|tool_call>", "<tool_call|>", '<|"|>')),
    "glm45": (lambda tools: ParameterTags(GLM, tools), ("<tool_call>", "<arg_key>", "<arg_value>")),
    "granite": (
        lambda tools: MarkedArray("<|tool_call|>", "<tool_call>", leading=True),
        ("<|tool_call|>", "<tool_call>"),
    ),
    "hermes": (lambda tools: TaggedObjects("<tool_call>", "</tool_call>"), ("<tool_call>",)),
    "internlm": (
        lambda tools: TaggedObjects("<|action_start|><|plugin|>", "<|action_end|>", ("parameters", "arguments")),
        ("<|action_start|>", "<|plugin|>", "<|action_end|>"),
    ),
    "kimi_k2": (lambda tools: SeparatedCalls(KIMI), KIMI.spellings),
    "llama3_json": (lambda tools: LeadingObjects(), ("<|python_tag|>",)),
    "minicpm": (
        lambda tools: TaggedCode("<|tool_call_start|>", "<|tool_call_end|>"),
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "minicpm5": (lambda tools: ParameterTags(MINICPM, tools), ()),
    "mistral": (lambda tools: Mistral(), ("[TOOL_CALLS]", "[ARGS]")),
    "openai": (lambda tools: Harmony(), SPELLINGS),
    "phi4_mini_json": (lambda tools: MarkedArray("functools"), ()),
    "pythonic": (lambda tools: PythonList(), ()),
    "qwen3_coder": (lambda tools: ParameterTags(QWEN, tools), ("<tool_call>",)),
    "qwen3_xml": (lambda tools: ParameterTags(QWEN, tools), ("<tool_call>",)),
}
"""Name -> how to make one for the tools of a request, and the special tokens its notation may consist of."""


def tool_parser(name: str, tools: Tools) -> ToolParser:
    """A fresh parser. Raises RequestError with the names there are."""
    return _entry(name)[0](tools)


def tool_marks(name: str) -> tuple[str, ...]:
    """Spellings that must stay in the text for this parser, even where they are special tokens."""
    return _entry(name)[1]


def _entry(name: str) -> tuple[Callable[[Tools], ToolParser], tuple[str, ...]]:
    if name not in TOOL_PARSERS:
        known = ", ".join(TOOL_PARSERS)
        raise RequestError(f"there is no tool parser {name!r}; there are {known}", param="tool_call_parser")
    return TOOL_PARSERS[name]


def calls_schema(tools: Tools, *, parallel: bool) -> dict[str, Any]:
    """A JSON schema of one or more calls of any of the tools, as ObjectArray reads them."""
    definitions: dict[str, dict[str, Any]] = {}
    options: list[dict[str, Any]] = []
    for tool in tools:
        parameters: dict[str, Any] = dict(tool.get("parameters") or {"type": "object", "properties": {}})
        for key in ("$defs", "definitions"):
            for name, definition in (parameters.pop(key, None) or {}).items():
                if definitions.setdefault(key, {}).setdefault(name, definition) != definition:
                    raise RequestError(f"two tools define {name[:64]!r} in different ways", param="tools")
        properties = {"name": {"type": "string", "enum": [tool["name"]]}, "parameters": parameters}
        options.append({"type": "object", "properties": properties, "required": ["name", "parameters"]})
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": options}, **definitions}
    return schema if parallel else schema | {"maxItems": 1}
