"""An answer taken apart, for the APIs that tell them apart: what the model thinks, says, and which tools it calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sensorium.config import ServerConfig
from sensorium.errors import RequestError, UnsupportedError
from sensorium.parsers.json_calls import ObjectArray
from sensorium.parsers.reasoning import ReasoningParser
from sensorium.parsers.tools import NamedCall, calls_schema, tool_marks, tool_parser
from sensorium.parsers.writing import CallDelta, ToolParser
from sensorium.server.chat_plan import ReasoningPlan, after_reasoning, are_special
from sensorium.types import Prompt, SamplingParams, StructuredOutputs

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient


@dataclass(frozen=True, slots=True)
class Thought:
    text: str


Piece = str | Thought | CallDelta


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """Which tools there are (name, description, parameters) and whether they must be called. name: for "named"."""

    tools: Sequence[Mapping[str, Any]] = ()
    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""
    parallel: bool = True

    def check(self, config: ServerConfig) -> None:
        """Raises RequestError where this cannot be had."""
        names = [tool["name"] for tool in self.tools]
        if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
            raise RequestError(f"tools: {twice!r} is there twice", param="tools")
        if self.mode in ("required", "named") and not names:
            raise RequestError("tool_choice: there are no tools to choose from", param="tool_choice")
        if self.mode == "named" and self.name not in names:
            raise RequestError(f"tool_choice: there is no tool {self.name!r}", param="tool_choice")
        if self.mode == "auto" and names and not (config.enable_auto_tool_choice and config.tool_call_parser):
            flags = "--enable-auto-tool-choice and --tool-call-parser"
            raise UnsupportedError(f"tools: the model may choose tools only on a server with {flags}", param="tools")

    def shown(self, config: ServerConfig) -> tuple[Mapping[str, Any], ...]:
        """What the chat template is told."""
        if self.mode == "none" and config.exclude_tools_when_tool_choice_none:
            return ()
        return tuple({"type": "function", "function": dict(tool)} for tool in self.tools)

    def shape(
        self, sampling: SamplingParams, client: EngineClient, config: ServerConfig, prompt: Prompt
    ) -> SamplingParams:
        """The sampling that makes the model write what the parsers will read."""
        reasoning = ReasoningPlan.of(config, prompt, None)
        marks = (reasoning.marks.opener, reasoning.marks.closer) if reasoning else ()
        rule = sampling.structured_outputs
        if self.tools and self.mode == "auto":
            marks = (*marks, *tool_marks(config.tool_call_parser or ""))
        elif self.tools and self.mode != "none":
            if rule is not None:
                raise RequestError("tool_choice: not together with another format", param="tool_choice")
            rule = StructuredOutputs(json=self._schema(), disable_any_whitespace=True)
        if are_special(marks, client):
            sampling = replace(sampling, skip_special_tokens=False)
        if rule is not None:
            sampling = replace(sampling, structured_outputs=after_reasoning(rule, client, reasoning))
        return sampling

    def _schema(self) -> dict[str, Any]:
        """Of the calls that must be made."""
        if self.mode == "named":
            chosen = next(tool for tool in self.tools if tool["name"] == self.name)
            return dict(chosen.get("parameters") or {"type": "object"})
        return calls_schema(self.tools, parallel=self.parallel)

    def parser(self, config: ServerConfig) -> ToolParser | None:
        if not self.tools or self.mode == "none":
            return None
        if self.mode == "auto":
            return tool_parser(config.tool_call_parser or "", self.tools)
        return NamedCall(self.name) if self.mode == "named" else ObjectArray()


class Splitter:
    """Takes one answer's text as it comes and gives it back in pieces."""

    def __init__(self, reasoning: ReasoningParser | None, calls: ToolParser | None, *, parallel: bool = True) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._parallel = parallel

    def feed(self, text: str) -> list[Piece]:
        thought, content = self._reasoning.feed(text) if self._reasoning else ("", text)
        return self._pieces(thought, content)

    def finish(self) -> list[Piece]:
        """What was held back."""
        thought, content = self._reasoning.finish() if self._reasoning else ("", "")
        pieces = self._pieces(thought, content)
        return [*pieces, *self._kept(self._calls.finish())] if self._calls else pieces

    def _pieces(self, thought: str, content: str) -> list[Piece]:
        pieces: list[Piece] = [Thought(thought)] if thought else []
        if content and self._calls:
            pieces += self._kept(self._calls.feed(content))
        elif content:
            pieces.append(content)
        return pieces

    def _kept(self, pieces: Sequence[str | CallDelta]) -> list[str | CallDelta]:
        """Without parallel calls, the first call only."""
        return [piece for piece in pieces if isinstance(piece, str) or self._parallel or piece.index == 0]


def splitter(config: ServerConfig, prompt: Prompt, use: ToolUse) -> Splitter:
    """For one answer to this prompt, by the parsers that the server was started with."""
    reasoning = ReasoningPlan.of(config, prompt, None)
    return Splitter(reasoning.parser() if reasoning else None, use.parser(config), parallel=use.parallel)
