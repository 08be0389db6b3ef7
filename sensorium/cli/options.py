"""Flags made from the configuration dataclasses, and configurations from what was given."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

from sensorium.cli.flags import FLAGS, FOREIGN, Flag
from sensorium.cli.parser import Parser
from sensorium.cli.values import CommaList, List, Merge, Switch, graph_settings, integer, json_object, number
from sensorium.compat import MOVED, NO_EFFECT, REFUSED, Foreign, translate
from sensorium.config import EngineConfig, MediaLimits, ServerConfig
from sensorium.errors import ConfigError

Config = TypeVar("Config", EngineConfig, MediaLimits, ServerConfig)

# Type of a field -> how its flag is read, and what --help calls the value.
READERS: dict[Any, tuple[Any, str]] = {
    int: (integer, "N"),
    float: (number, "X"),
    Path: (Path, "PATH"),
    str: (str, "TEXT"),
    Mapping: (json_object, "JSON"),
}
KINDS: dict[str, dict[str, Any]] = {
    "int": {"type": integer, "metavar": "N"},
    "float": {"type": number, "metavar": "X"},
    "str": {"metavar": "TEXT"},
    "json": {"type": json_object, "metavar": "JSON", "action": Merge},
    "graphs": {"type": graph_settings, "metavar": "JSON", "action": Merge},
    "list": {"action": List, "nargs": "+", "metavar": "TEXT"},
    "int_list": {"action": List, "nargs": "+", "type": integer, "metavar": "N"},
}
_COMMAS = {"api_key_exempt", "disable_access_log_for_endpoints"}
_MOVED: dict[str, tuple[Foreign, str]] = {
    "disable_mm_preprocessor_cache": (Foreign("bool"), "retired: --mm-processor-cache-gb 0"),
    "disable_mm_processor_cache": (Foreign("bool"), "the same"),
    "task": (Foreign("str"), "retired: --runner"),
    "device_ids": (Foreign("str"), "the one device to use, by number"),
    "optimization_level": (Foreign("str"), "0 is --enforce-eager"),
    "compilation_config": (Foreign("graphs"), "JSON; a mode or cudagraph_mode of NONE is --enforce-eager"),
}


def add_flags(parser: argparse.ArgumentParser, *configs: type, title: str = "") -> None:
    """The flags of some configurations, in the groups of the table, or all in one called `title`."""
    groups: dict[str, Any] = {}
    for config in configs:
        hints = typing.get_type_hints(config)
        known = {field.name: field for field in fields(config)}
        for name, flags in FLAGS[config].items():
            name = title or name
            group = groups[name] = groups.get(name) or parser.add_argument_group(name)
            for field_name, flag in flags.items():
                _add(group, known[field_name], hints[field_name], flag)


def add_foreign(parser: argparse.ArgumentParser) -> None:
    """vLLM's flags that are no settings here: told so, once, when they are given."""
    group = parser.add_argument_group(FOREIGN)
    for name, (foreign, text) in _MOVED.items():
        _add_foreign(group, name, foreign, text)
    for name, foreign in REFUSED.items():
        _add_foreign(group, name, foreign, f"not supported: {foreign.why}")
    for name, foreign in NO_EFFECT.items():
        _add_foreign(group, name, foreign, "accepted, no effect")


def settings(parser: Parser, args: argparse.Namespace) -> dict[str, Any]:
    """The fields that the flags set, by name. Ends the program with status 2 where a flag is refused by itself."""
    try:
        return translate(vars(args), lambda message: parser.warn(message))
    except ConfigError as error:
        refuse(parser, error)
        raise


def build(config: type[Config], given: Mapping[str, Any], **more: Any) -> Config:
    """A configuration from the fields that were given; `more` fills those that are no flags."""
    names = {name for flags in FLAGS[config].values() for name in flags}
    return config(**{name: value for name, value in given.items() if name in names}, **more)


def refuse(parser: Parser, error: ConfigError) -> None:
    """Exit with 2 and the flag's name where one flag is at fault. Returns where several are."""
    if error.param is None:
        return
    for action in parser._actions:
        if action.dest == error.param and action.option_strings:
            parser.error(f"argument {action.option_strings[0]}: {error.message}")


def _add(group: Any, field: Field[Any], hint: Any, flag: Flag) -> None:
    names = flag.names or ("--" + field.name.replace("_", "-"),)
    kind = _kind(field, hint, names)
    if flag.read is not None:
        kind["type"] = flag.read
    if field.name == "hf_token":
        kind |= {"nargs": "?", "const": True}
    if field.name in _COMMAS:
        kind["action"] = CommaList
    text = flag.text.replace("%", "%%") + _default(field)
    special = dict(flag.by_name)
    plain = [name for name in names if name not in special]
    group.add_argument(*(plain if "names" not in kind else plain[:1]), dest=field.name, help=text, **kind)
    for name, read in special.items():
        group.add_argument(name, dest=field.name, help=text, **(kind | {"type": read}))


def _default(field: Field[Any]) -> str:
    value = None if field.default is MISSING else field.default
    if value in (None, "", ()) or isinstance(value, bool):
        return ""
    return f" (default: {' '.join(value) if isinstance(value, tuple) else value})"


def _kind(field: Field[Any], hint: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """What argparse needs to read one field. Without a default: what is not given leaves no trace."""
    kind: dict[str, Any] = {"default": argparse.SUPPRESS}
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if union else (hint,)
    options = [option for option in options if option is not type(None)]
    tuples = [option for option in options if typing.get_origin(option) is tuple]
    hint = tuples[0] if tuples else options[0]
    if typing.get_origin(hint) is Mapping:
        return kind | {"type": json_object, "metavar": "JSON", "action": Merge}
    if hint is bool:
        return kind | {"action": Switch, "names": names}
    if typing.get_origin(hint) is typing.Literal:
        return kind | {"choices": typing.get_args(hint)}
    if tuples:
        return kind | {"action": List, "nargs": "+", "metavar": "TEXT"}
    reader, metavar = READERS[hint]
    return kind | {"type": reader, "metavar": metavar}


def _add_foreign(group: Any, name: str, foreign: Foreign, text: str) -> None:
    flag = "--" + name.replace("_", "-")
    kind = {"action": Switch, "names": (flag,)} if foreign.kind == "bool" else KINDS[foreign.kind]
    group.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **kind)


def known_names() -> set[str]:
    """Every argument name of the table: fields, and vLLM's that are no fields."""
    own = {name for table in FLAGS.values() for flags in table.values() for name in flags}
    return own | set(REFUSED) | set(NO_EFFECT) | set(MOVED)
