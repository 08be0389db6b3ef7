"""Tools of a request: which of them the prompt names, what the answer is made to be, and how calls are read from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sensorium.config import ServerConfig
from sensorium.errors import RequestError
from sensorium.params import StructuredOutputs
from sensorium.parsers.json_calls import ObjectArray
from sensorium.parsers.tools import NamedCall, calls_schema, tool_marks, tool_parser
from sensorium.parsers.writing import ToolParser


@dataclass(frozen=True, slots=True)
class Named:
    """The choice of one function. place: the field that says so, for error messages."""

    name: str
    place: str


Choice = Literal["none", "auto", "required"] | Named


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """mode: how calls come about. in_prompt: tools as templates read them. marks: spellings a parser must see.

    Without parallel, only the first call of an answer is kept.
    """

    mode: Literal["none", "auto", "required", "named"] = "none"
    in_prompt: tuple[Mapping[str, Any], ...] = ()
    rule: StructuredOutputs | None = None
    parser: Callable[[], ToolParser] | None = None
    marks: tuple[str, ...] = ()
    parallel: bool = True


def plan_tools(
    functions: Sequence[Mapping[str, Any]], choice: Choice, config: ServerConfig, *, parallel: bool = True
) -> ToolPlan:
    """functions: name, description and parameters (a JSON schema) of each; the last two may be missing.

    Raises RequestError where functions and choice do not fit each other, or the server's settings.
    """
    if not functions:
        if choice not in ("none", "auto"):
            raise RequestError("tool_choice: there are no tools to choose from", param="tool_choice")
        return ToolPlan()
    names = [function["name"] for function in functions]
    if len(set(names)) < len(names):
        raise RequestError("tools: two functions have the same name", param="tools")
    in_prompt = tuple({"type": "function", "function": dict(function)} for function in functions)
    if choice == "none":
        return ToolPlan(in_prompt=() if config.exclude_tools_when_tool_choice_none else in_prompt)
    if isinstance(choice, Named):
        name = choice.name
        if name not in names:
            reason = f"{choice.place}: there is no tool {name[:64]!r}; there are {', '.join(names)[:400]}"
            raise RequestError(reason, param=choice.place)
        schema = functions[names.index(name)].get("parameters") or {"type": "object"}
        rule = StructuredOutputs(json=schema, disable_any_whitespace=True)
        return ToolPlan("named", in_prompt, rule, lambda: NamedCall(name), parallel=parallel)
    if choice == "required":
        rule = StructuredOutputs(json=calls_schema(functions, parallel=parallel), disable_any_whitespace=True)
        return ToolPlan("required", in_prompt, rule, ObjectArray, parallel=parallel)
    kind = config.tool_call_parser
    if not config.enable_auto_tool_choice or kind is None:
        raise RequestError(
            "tool_choice: that the model chooses tools itself needs a server started with --enable-auto-tool-choice "
            "and --tool-call-parser; that it must call one, or none, works without",
            param="tool_choice",
        )
    return ToolPlan("auto", in_prompt, None, lambda: tool_parser(kind, functions), tool_marks(kind), parallel)
