"""Calls whose parameters are tags of their own: Qwen3-Coder, GLM 4.5, MiniCPM 5."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sensorium.parsers.writing import FUNCTION_NAME, Buffered, CallDelta, split_at

_CDATA = re.compile(r"\s*<!\[CDATA\[(.*)\]\]>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Tags:
    """opener NAME name_end, then key KEY key_end VALUE value_end for each parameter, then end.

    name_end: empty where the name goes on up to the next tag. value: what stands before a value, if anything does.
    around: tags around one or more calls.
    """

    opener: str
    name_end: str
    key: str
    key_end: str
    value_end: str
    end: str
    value: str = ""
    around: tuple[str, str] | None = None

    @property
    def name_ends(self) -> tuple[str, ...]:
        return (self.name_end,) if self.name_end else (self.key, self.end)

    @property
    def starts(self) -> tuple[str, ...]:
        return (self.opener,) if self.around is None else (self.around[0], self.opener)


QWEN = Tags("<function=", ">", "<parameter=", ">", "</parameter>", "</function>", "", ("<tool_call>", "</tool_call>"))
GLM = Tags("<tool_call>", "", "<arg_key>", "</arg_key>", "</arg_value>", "</tool_call>", "<arg_value>")
MINICPM = Tags('<function name="', '">', '<param name="', '">', "</param>", "</function>")


class ParameterTags(Buffered):
    """What a parameter's text means is in the schema of its function; without one it is a string."""

    def __init__(self, tags: Tags, tools: Sequence[Mapping[str, Any]]) -> None:
        self._tags = tags
        self._schemas = {tool["name"]: _properties(tool) for tool in tools}
        super().__init__()
        self._awaited = tags.starts
        self._inside: str | None = None
        self._function = self._parameter = ""
        self._count = 0

    def finish(self) -> list[str | CallDelta]:
        if self._inside is None:
            self._writer.text(self._buffer)
        elif self._inside == "name":
            self._writer.text(self._tags.opener + self._buffer)
        elif self._inside == "body":
            self._writer.arguments(self._closing())
        return self._writer.end()

    def _step(self) -> bool:
        """One tag read from the buffer; whether there may be another."""
        before, mark, rest = split_at(self._buffer, self._awaited)
        if mark is None and self._inside in ("name", "key", "gap", "value"):
            return False
        self._buffer = rest
        if self._inside is None:
            self._writer.text(before)
        if mark is None:
            return False
        tags = self._tags
        if self._inside == "name":
            self._named(before, mark)
        elif self._inside == "key":
            self._parameter = before.strip()
            self._wait(*(("gap", tags.value) if tags.value else ("value", tags.value_end)))
        elif self._inside == "gap":
            self._wait("value", tags.value_end)
        elif self._inside == "value":
            self._add(before)
            self._wait("body", tags.key, tags.end)
        else:
            self._at(mark)
        return True

    def _at(self, mark: str) -> None:
        """A tag that opens or closes something."""
        tags = self._tags
        if mark == tags.opener:
            self._wait("name", *tags.name_ends)
        elif mark == tags.key:
            self._wait("key", tags.key_end)
        elif mark == tags.end:
            self._writer.arguments(self._closing())
            if tags.around:
                self._wait("calls", tags.opener, tags.around[1])
            else:
                self._wait(None, tags.opener)
        elif tags.around and mark == tags.around[0]:
            self._wait("calls", tags.opener, tags.around[1])
        else:
            self._wait(None, *tags.starts)

    def _wait(self, inside: str | None, *marks: str) -> None:
        self._inside, self._awaited = inside, marks

    def _named(self, text: str, mark: str) -> None:
        name = text.strip()
        if not FUNCTION_NAME.fullmatch(name):
            self._writer.text(self._tags.opener + text + mark)
            self._wait(None, *self._tags.starts)
            return
        self._function, self._count = name, 0
        self._writer.begin(name)
        self._wait("body", self._tags.key, self._tags.end)
        if not self._tags.name_end:
            self._at(mark)

    def _add(self, text: str) -> None:
        if whole := _CDATA.fullmatch(text):
            text = whole[1]
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
