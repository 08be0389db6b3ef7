"""Chat templates: the checkpoint's Jinja text in a sandbox, and marks that keep user text and media apart from it."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sensorium.errors import CheckpointError, ContextLengthError, RequestError
from sensorium.models.tokenizer import Tokenizer, read_json

_RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now", "chat_template"}
)


class ChatTemplate:
    """One checkpoint's template. Rendering keeps no state, so threads may share it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """config: the content of tokenizer_config.json."""
        self._sources = _sources(folder, config)
        self._globals = {name: _text(config[name]) for name in config if name.endswith("_token") and config[name]}
        self._compiled: dict[str, jinja2.Template] = {}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            self._compiled = {name: environment.from_string(source) for name, source in self._sources.items()}
        except jinja2.TemplateError as error:
            raise CheckpointError(f"the chat template does not compile: {error.message}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        max_chars: int = 8_000_000,
    ) -> str:
        """The prompt as text. max_chars bounds the output while it is being produced."""
        if not self._compiled:
            raise RequestError("this model has no chat template; send a raw prompt", param="messages")
        variables = variables or {}
        if taken := _RESERVED & variables.keys():
            raise RequestError(f"{min(taken)} cannot be set from outside", param="chat_template_kwargs")
        template = self._compiled["tool_use" if tools and "tool_use" in self._compiled else "default"]
        pieces: list[str] = []
        length = 0
        try:
            for piece in template.generate(
                **{**self._globals, **variables},
                messages=list(messages),
                tools=list(tools) or None,
                add_generation_prompt=add_generation_prompt,
            ):
                length += len(piece)
                if length > max_chars:
                    raise ContextLengthError("the prompt is far longer than the model's context", param="messages")
                pieces.append(piece)
        except (RequestError, MemoryError):
            raise
        except Exception as error:  # template code raises anything: undefined fields, wrong types, its own messages
            reason = error.message if isinstance(error, _TemplateRefusal) else "they do not fit what it expects"
            raise RequestError(f"the chat template refused the messages: {reason}", param="messages") from error
        return "".join(pieces)


class StandIns:
    """Unguessable marks for what a template must carry but not read: media, and user text that spells control tokens.

    One instance serves one rendering. `literals` maps each text mark to what it stands for.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._secret = secrets.token_hex(12)
        self._count = 0
        self.literals: dict[str, str] = {}

    def media(self, index: int) -> str:
        return f"m{self._secret}n{index}e"

    def end(self) -> str:
        """A mark for the end of an unfinished final message."""
        return f"end{self._secret}"

    def text(self, text: str, *, special_only: bool = False) -> str:
        """`text` with every control token spelling replaced. special_only leaves <think> and the like to templates."""
        pattern = self._tokenizer.special_pattern if special_only else self._tokenizer.control_pattern
        hidden = pattern.sub(lambda match: self._literal(match[0]), text)
        if self._tokenizer.spells_control(hidden, special_only=special_only):
            return self._literal(text)  # spelled only after Unicode normalisation
        return hidden

    def tree(self, value: Any, *, special_only: bool = False) -> Any:
        """The same for every string inside a JSON-like value."""
        if isinstance(value, str):
            return self.text(value, special_only=special_only)
        if isinstance(value, Mapping):
            return {self.tree(key): self.tree(item, special_only=special_only) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.tree(item, special_only=special_only) for item in value]
        return value

    def split(self, rendered: str, count: int) -> list[str | int]:
        """Text and media indices in rendered order; each of `count` media must appear exactly once."""
        pieces: list[str | int] = list(re.split(f"m{self._secret}n([0-9]+)e", rendered))
        pieces[1::2] = [int(index) for index in pieces[1::2]]
        if sorted(pieces[1::2]) != list(range(count)):
            raise RequestError("the chat template has no place for media in one of these messages", param="messages")
        return pieces

    def restore(self, text: str) -> str:
        for mark, literal in self.literals.items():
            text = text.replace(mark, literal)
        return text

    def _literal(self, text: str) -> str:
        self._count += 1
        mark = f"t{self._secret}n{self._count}e"
        self.literals[mark] = text
        return mark


class _GenerationTag(Extension):
    """{% generation %}…{% endgeneration %} marks what training learns from; for inference only the body matters."""

    tags: set[str] = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _TemplateRefusal(jinja2.TemplateError):
    """What a template says through raise_exception."""


def _raise_exception(message: str) -> None:
    raise _TemplateRefusal(str(message)[:200])


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _text(token: Any) -> str:
    return token.get("content", "") if isinstance(token, Mapping) else str(token)


def _sources(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Template texts by name; files beside the tokenizer win over its configuration."""
    if (folder / "chat_template.jinja").is_file():
        return {"default": (folder / "chat_template.jinja").read_text(encoding="utf-8")}
    found: Any = read_json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, str):
        return {"default": found}
    if isinstance(found, Iterable):
        named = {entry["name"]: entry["template"] for entry in found}
        return named if "default" in named else {"default": next(iter(named.values())), **named} if named else {}
    return {}
