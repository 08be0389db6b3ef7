"""Jinja templates in a sandbox: compiled, looked into, rendered. Imports little: a process of its own may do it too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateRefusal(jinja2.TemplateError):
    """What a template says through raise_exception."""


class TooLong(Exception):
    """The output grew past its limit."""


def environment() -> jinja2.Environment:
    """What published chat templates expect of their surroundings."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return made


def generate(template: jinja2.Template, context: Mapping[str, Any], max_chars: int) -> str:
    """The output. Raises TooLong while it is produced, and whatever template code raises."""
    pieces: list[str] = []
    length = 0
    for piece in template.generate(**context):
        length += len(piece)
        if length > max_chars:
            raise TooLong
        pieces.append(piece)
    return "".join(pieces)


def reads_parts(source: str) -> bool:
    """Whether a template goes through the parts of a message's content; the others take it as one string."""
    tree = environment().parse(source)
    named = {"content"}
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, named):
            named.add(assignment.target.name)
    return any(_is_content(loop.iter, named) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node, named: set[str]) -> bool:
    if isinstance(node, nodes.Filter) and node.node is not None:
        return _is_content(node.node, named)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in named


class _GenerationTag(Extension):
    """{% generation %}…{% endgeneration %} marks what training learns from; for inference only the body matters."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateRefusal(str(message)[:200])


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
