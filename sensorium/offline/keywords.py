"""Keywords of LLM, among them those of vLLM under their names there, as settings."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from sensorium import compat
from sensorium.config import EngineConfig, MediaLimits
from sensorium.errors import ConfigError, RequestError
from sensorium.types import ChatOptions

log = logging.getLogger(__name__)
_FIELDS = {field.name: field for field in fields(EngineConfig)}
_LIMITS = {"allowed_media_domains": "allowed_domains", "allowed_local_media_path": "allowed_local_path"}
# Of engines before vLLM's present one, or of its server: nothing to do here.
_NO_EFFECT = ("swap_space", "use_v2_block_manager", "max_seq_len_to_capture", "worker_use_ray", "served_model_name")


@dataclass(frozen=True, slots=True)
class ChatDefaults:
    """Keywords of LLM that say how conversations become prompts."""

    chat_template: str | None = None
    """A Jinja template, or the path of one."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    interleave_mm_strings: bool | None = None

    def applied(self, options: ChatOptions, template: str | None, content_format: str) -> ChatOptions:
        """Options of one call over these."""
        form = self.chat_template_content_format if content_format == "auto" else content_format
        if form not in ("auto", "string", "openai"):
            raise RequestError(
                f"chat_template_content_format: {form!r} is none of auto, string, openai",
                param="chat_template_content_format",
            )
        return replace(
            options,
            template=read_template(template or self.chat_template),
            content_format=form,
            interleave=self.interleave_mm_strings,
            template_kwargs={**self.default_chat_template_kwargs, **options.template_kwargs},
        )


_CHAT = tuple(field.name for field in fields(ChatDefaults))


def read_template(template: str | None) -> str | None:
    """A template's text, from itself or from the file it names."""
    if template is None or any(mark in template for mark in ("{{", "{%", "\n")):
        return template
    try:
        return Path(template).expanduser().read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template: {template!r} is no Jinja text, and cannot be read as a file ({error})",
            param="chat_template",
        ) from error


def read_keywords(model: str, given: Mapping[str, Any], caller: str = "LLM()") -> tuple[EngineConfig, ChatDefaults]:
    """caller: what was called. Raises TypeError for a name nobody knows, ConfigError for a value that cannot be had."""
    chat = {name: value for name, value in given.items() if name in _CHAT and value is not None}
    rest = {name: value for name, value in given.items() if name not in _CHAT and not _passed_over(name)}
    options: dict[str, Any] = {"disable_log_stats": True}
    limits: dict[str, Any] = {}
    for name, value in compat.translate(rest, log.warning).items():
        if name in _LIMITS:
            limits[_LIMITS[name]] = tuple(value or ()) if name == "allowed_media_domains" else _folder(name, value)
        elif name not in _FIELDS:
            raise TypeError(_unknown(name, caller))
        elif value is not None:  # None is how vLLM asks for a default
            options[name] = str(value).removeprefix("torch.") if name == "dtype" else value
    if limits:
        options["limits"] = replace(options.get("limits", MediaLimits()), **limits)
    return EngineConfig(model=str(model), **options), ChatDefaults(**chat)


def _passed_over(name: str) -> bool:
    if name in _NO_EFFECT:
        log.warning("%s is accepted, no effect in sensorium", name)
    return name in _NO_EFFECT


def _unknown(name: str, caller: str) -> str:
    known = [*_FIELDS, *_LIMITS, *_CHAT, *compat.MOVED]
    near = difflib.get_close_matches(name, [*known, *compat.REFUSED, *compat.NO_EFFECT], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; the known ones are {', '.join(known)}"
    return f"{caller} got an unexpected keyword argument {name!r}{hint}"


def _folder(name: str, value: Any) -> Path | None:
    if not value:
        return None
    path = Path(value).expanduser()
    if not path.is_dir():
        raise ConfigError(f"{name}: {str(value)!r} is not a directory", param=name)
    return path
