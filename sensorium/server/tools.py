"""Tools of a request: which of them the prompt names, what the answer is made to be, and how calls are read from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from sensorium.config import ServerConfig
from sensorium.errors import RequestError
from sensorium.params import StructuredOutputs
from sensorium.parsers.json_calls import ObjectArray
from sensorium.parsers.tools import NamedCall, calls_schema, tool_marks, tool_parser
from sensorium.parsers.writing import ToolParser
from sensorium.server.chat_schema import NamedTool, Tool


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """mode: how calls come about. in_prompt: tools as templates read them. marks: spellings a parser must see."""

    mode: Literal["none", "auto", "required", "named"] = "none"
    in_prompt: tuple[dict[str, Any], ...] = ()
    rule: StructuredOutputs | None = None
    parser: Callable[[], ToolParser] | None = None
    marks: tuple[str, ...] = ()
    parallel: bool = True


def plan_tools(
    tools: Sequence[Tool] | None,
    choice: Literal["none", "auto", "required"] | NamedTool | None,
    *,
    parallel: bool,
    config: ServerConfig,
) -> ToolPlan:
    """Raises RequestError where tools and choice do not fit each other, or the server's settings."""
    if tools is None:
        if choice not in (None, "none"):
            raise RequestError("tool_choice: only with tools", param="tool_choice")
        return ToolPlan()
    if not tools:
        raise RequestError("tools: must not be empty; leave it out instead", param="tools")
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise RequestError("tools: two functions have the same name", param="tools")
    in_prompt = tuple(_for_template(tool) for tool in tools)
    functions = [entry["function"] for entry in in_prompt]
    if choice == "none":
        return ToolPlan(in_prompt=() if config.exclude_tools_when_tool_choice_none else in_prompt)
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in names:
            reason = f"tool_choice: there is no tool {name[:64]!r}; there are {', '.join(names)[:400]}"
            raise RequestError(reason, param="tool_choice.function.name")
        schema = functions[names.index(name)].get("parameters") or {"type": "object"}
        rule = StructuredOutputs(json=schema, disable_any_whitespace=True)
        return ToolPlan("named", in_prompt, rule, lambda: NamedCall(name), parallel=parallel)
    if choice == "required":
        rule = StructuredOutputs(json=calls_schema(functions, parallel=parallel), disable_any_whitespace=True)
        return ToolPlan("required", in_prompt, rule, ObjectArray, parallel=parallel)
    kind = config.tool_call_parser
    if not config.enable_auto_tool_choice or kind is None:
        raise RequestError(
            'tool_choice: "auto" needs a server started with --enable-auto-tool-choice and --tool-call-parser; '
            '"required", "none" and a named function work without',
            param="tool_choice",
        )
    return ToolPlan("auto", in_prompt, None, lambda: tool_parser(kind, functions), tool_marks(kind), parallel)


def _for_template(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = msgspec.to_builtins(tool.function)
    given = {name: value for name, value in function.items() if value is not None}
    return {"type": "function", "function": given}
