"""Chat templates: the checkpoint's Jinja text in a sandbox, and marks that keep user text and media apart from it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2

from sensorium.errors import CheckpointError, ContextLengthError, RequestError
from sensorium.models import template_worker
from sensorium.models.template_rendering import TemplateRefusal, TooLong, environment, generate, reads_parts
from sensorium.models.tokenizer import Tokenizer, read_json
from sensorium.types import ChatOptions, Message

_RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now", "chat_template", "tokenize"}
)
_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_MISSING = "this model has no chat template; start the server with --chat-template, or send a raw prompt"


class ChatTemplate:
    """One checkpoint's template. Rendering keeps no state, so threads may share it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """config: the content of tokenizer_config.json."""
        self._sources = _sources(folder, config)
        self._globals = {name: _text(config[name]) for name in config if name.endswith("_token") and config[name]}
        try:
            for source in self._sources.values():
                _compiled(source)
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
        options: ChatOptions | None = None,
    ) -> str:
        """The prompt as text. max_chars bounds the output while it is being produced.

        options: whose template is taken instead, if it has one.
        """
        options = options or ChatOptions()
        variables = variables or {}
        if taken := _RESERVED & variables.keys():
            raise RequestError(f"{min(taken)} cannot be set from outside", param="chat_template_kwargs")
        source = self.source(options, with_tools=bool(tools))
        drafts = [self._known_role(message, source) for message in messages]
        context: dict[str, Any] = {
            **self._globals,
            **variables,
            "messages": drafts,
            "tools": list(tools) or None,
            "add_generation_prompt": add_generation_prompt,
        }
        param = "messages" if options.template is None else "chat_template"
        try:
            if options.template is not None and not options.template_is_trusted:
                return template_worker.render(source, context, max_chars)
            return generate(_compiled(source), context, max_chars)
        except TooLong:
            reason = "the prompt is far longer than the model's context"
            raise ContextLengthError(reason, param="messages") from None
        except (RequestError, MemoryError):
            raise
        except jinja2.TemplateSyntaxError as error:
            raise RequestError(f"chat_template: {str(error.message)[:200]}", param=param) from error
        except Exception as error:  # template code raises anything: undefined fields, wrong types, its own messages
            reason = error.message if isinstance(error, TemplateRefusal) else "they do not fit what it expects"
            raise RequestError(f"the chat template refused the messages: {reason}", param=param) from error

    def source(self, options: ChatOptions, *, with_tools: bool = False) -> str:
        """The text of the template for these options. Raises RequestError if there is none."""
        if options.template is not None:
            return options.template
        if not self._sources:
            raise RequestError(_MISSING, param="messages")
        return self._sources["tool_use" if with_tools and "tool_use" in self._sources else "default"]

    def takes_parts(self, options: ChatOptions) -> bool:
        """Whether content is given to it as a list of parts, not as one string."""
        if options.content_format != "auto":
            return options.content_format == "openai"
        try:
            return _reads_parts(self.source(options))
        except jinja2.TemplateError as error:
            raise RequestError(f"chat_template: {str(error.message)[:200]}", param="chat_template") from error

    @staticmethod
    def _known_role(message: Mapping[str, Any], source: str) -> Mapping[str, Any]:
        """Developers speak as the system to templates that do not know them."""
        if message["role"] == "developer" and "developer" not in source:
            return {**message, "role": "system"}
        return message


@lru_cache(maxsize=32)
def _compiled(source: str) -> jinja2.Template:
    return environment().from_string(source)


@lru_cache(maxsize=32)
def _reads_parts(source: str) -> bool:
    return reads_parts(source)


def check_role(message: Message, place: str) -> None:
    """Roles stand in prompts as they are written: only plain words may be one."""
    if not _ROLE.fullmatch(message.role):
        raise RequestError(f"unknown role {str(message.role)[:32]!r}", param=f"{place}.role")


def check_unfinished(messages: Sequence[Message]) -> None:
    """What is to be continued must have begun."""
    if not any(isinstance(part, str) and part for part in messages[-1].parts):
        reason = "continue_final_message: the last message has no text to continue"
        raise RequestError(reason, param="continue_final_message")


def arranged(parts: Sequence[Any], interleave: bool | None) -> list[Any]:
    """Parts in the order in which one string shows them: media first, unless they alternate with text."""
    is_text = [isinstance(part, str) for part in parts]
    alternates = sum(before != after for before, after in pairwise(is_text)) > 1
    if interleave or (interleave is None and alternates):
        return list(parts)
    return sorted(parts, key=lambda part: isinstance(part, str))


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
        before, *marked = rendered.split(f"m{self._secret}n")
        pieces: list[str | int] = [before]
        for part in marked:
            index, _, text = part.partition("e")
            pieces += [int(index) if index.isdecimal() else -1, text]
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
