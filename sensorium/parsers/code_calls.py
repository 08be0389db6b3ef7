"""Calls written as code: Python expressions."""

from __future__ import annotations

import ast
import json
import re
import warnings
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
