"""Calls written as code: Python expressions, and the XML of Qwen3-Coder."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.parsers.writing import CallDelta, Writer, split_at

MAX_CODE = 200_000
_CALL_LIST = re.compile(r"\[\s*[A-Za-z_][\w.-]*\s*\(")
_MAYBE_CALL_LIST = re.compile(r"\[\s*(?:[A-Za-z_][\w.-]*\s*)?")
_NAMES = {"true": True, "false": False, "null": None, "none": None}


def read_calls(code: str) -> list[tuple[str, str]] | None:
    """(name, arguments as JSON) of every call in Python code that is calls, or one list of them; None if it is not."""
    if len(code) > MAX_CODE:
        return None
    try:
        with warnings.catch_warnings():  # of escapes that Python does not know; models write them
            warnings.simplefilter("ignore")
            statements = ast.parse(code.strip()).body
        found = [statement.value for statement in statements if isinstance(statement, ast.Expr)]
        if len(found) != len(statements):
            return None
        if len(found) == 1 and isinstance(found[0], ast.List):
            found = found[0].elts
        return [_read_call(expression) for expression in found] or None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _read_call(node: ast.expr) -> tuple[str, str]:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    arguments = {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if None in arguments:
        raise ValueError("arguments without a name")
    return ast.unparse(node.func), json.dumps(arguments, ensure_ascii=False, allow_nan=False)


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values):
            return {
                str(ast.literal_eval(key or node)): _literal(value) for key, value in zip(keys, values, strict=True)
            }
        case _:
            return ast.literal_eval(node)


class PythonList:
    """An answer that is one list of calls, [f(a=1), g()]: Llama 3.2, 4. Anything else is content."""

    def __init__(self) -> None:
        self._writer = Writer()
        self._buffer = ""
        self._plain = False

    def feed(self, text: str) -> list[str | CallDelta]:
        self._buffer += text
        stripped = self._buffer.lstrip()
        maybe = _MAYBE_CALL_LIST.match(stripped)
        if stripped and not _CALL_LIST.match(stripped) and (maybe is None or maybe.end() < len(stripped)):
            self._plain = True
        if self._plain:
            self._writer.text(self._buffer)
            self._buffer = ""
        return self._writer.take()

    def finish(self) -> list[str | CallDelta]:
        calls = None if self._plain or not self._buffer.strip() else read_calls(self._buffer)
        for name, arguments in calls or ():
            self._writer.begin(name)
            self._writer.arguments(arguments)
        if calls is None:
            self._writer.text(self._buffer)
        return self._writer.end()


class TaggedCode:
    """Python calls between two tags, perhaps in a Markdown fence: MiniCPM."""

    def __init__(self, opener: str, closer: str) -> None:
        self._opener, self._closer = opener, closer
        self._writer = Writer()
        self._buffer = ""
        self._inside = False

    def feed(self, text: str) -> list[str | CallDelta]:
        self._buffer += text
        found: str | None = self._opener
        while found:
            before, found, rest = split_at(self._buffer, [self._closer if self._inside else self._opener])
            if self._inside and found is None:
                break
            self._buffer = rest
            if self._inside:
                self._close(before)
            else:
                self._writer.text(before)
            self._inside = (not self._inside) if found else self._inside
        return self._writer.take()

    def finish(self) -> list[str | CallDelta]:
        self._writer.text((self._opener if self._inside else "") + self._buffer)
        return self._writer.end()

    def _close(self, body: str) -> None:
        calls = read_calls(re.sub(r"^\s*```\w*\n|```\s*$", "", body))
        for name, arguments in calls or ():
            self._writer.begin(name)
            self._writer.arguments(arguments)
        if calls is None:
            self._writer.text(self._opener + body + self._closer)


_CALLS, _CALLS_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


class ParameterTags:
    """<tool_call><function=f><parameter=a>1</parameter></function></tool_call>: Qwen3-Coder.

    What a parameter's text means is in the schema of its function.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        self._schemas = {tool["name"]: _properties(tool) for tool in tools}
        self._writer = Writer()
        self._buffer = ""
        self._awaited = (_CALLS, _FUNCTION)
        self._inside: str | None = None
        self._function = self._parameter = ""
        self._count = 0

    def feed(self, text: str) -> list[str | CallDelta]:
        self._buffer += text
        while self._step():
            pass
        return self._writer.take()

    def finish(self) -> list[str | CallDelta]:
        if self._inside is None:
            self._writer.text(self._buffer)
        elif self._inside == "body":
            self._writer.arguments(self._closing())
        return self._writer.end()

    def _step(self) -> bool:
        before, mark, rest = split_at(self._buffer, self._awaited)
        if mark is None and self._inside in ("name", "key", "value"):
            return False
        self._buffer = rest
        if self._inside is None:
            self._writer.text(before)
        if mark is None:
            return False
        if self._inside == "name":
            self._begin(before.strip())
        elif self._inside == "key":
            self._parameter = before.strip()
            self._wait("value", _PARAMETER_END)
        elif self._inside == "value":
            self._add(before)
            self._wait("body", _PARAMETER, _FUNCTION_END)
        elif mark == _FUNCTION:
            self._wait("name", ">")
        elif mark == _PARAMETER:
            self._wait("key", ">")
        elif mark == _FUNCTION_END:
            self._writer.arguments(self._closing())
            self._wait("calls", _FUNCTION, _CALLS_END)
        elif mark == _CALLS:
            self._wait("calls", _FUNCTION, _CALLS_END)
        else:
            self._wait(None, _CALLS, _FUNCTION)
        return True

    def _wait(self, inside: str | None, *marks: str) -> None:
        self._inside, self._awaited = inside, marks

    def _begin(self, name: str) -> None:
        self._function, self._count = name, 0
        self._writer.begin(name)
        self._wait("body", _PARAMETER, _FUNCTION_END)

    def _add(self, text: str) -> None:
        text = text.removeprefix("\n").removesuffix("\n")
        schema = self._schemas.get(self._function, {}).get(self._parameter)
        value = json.dumps(_typed(text, schema), ensure_ascii=False)
        start = ", " if self._count else "{"
        self._count += 1
        self._writer.arguments(f"{start}{json.dumps(self._parameter, ensure_ascii=False)}: {value}")

    def _closing(self) -> str:
        return "}" if self._count else "{}"


def _properties(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    found = (tool.get("parameters") or {}).get("properties")
    return found if isinstance(found, Mapping) else {}


def _typed(text: str, schema: Any) -> Any:
    """The value that the text of a parameter stands for: JSON unless the schema says, or allows, a string."""
    if not isinstance(schema, Mapping) or (not schema.get("type") and "anyOf" not in schema and "enum" not in schema):
        return text
    options = [schema, *(option for option in schema.get("anyOf") or () if isinstance(option, Mapping))]
    kinds: set[str] = set()
    for option in options:
        kind = option.get("type")
        kinds.update([kind] if isinstance(kind, str) else kind or ())
    if "null" in kinds and text.strip() in ("null", "None"):
        return None
    if "string" in kinds or not kinds:
        return text
    if "boolean" in kinds and text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value
