"""The command line before argparse: - and _ are one, short forms, dotted keys, and flags from a file.

`--f.a.b v` becomes `--f '{"a": {"b": v}}'`; the flag's action merges what comes from several places.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sensorium.cli.flags import SHORT
from sensorium.cli.values import Merge, Switch, json_value


class GrammarError(Exception):
    """A command line that cannot be read; the message is for the user."""


def rewrite(words: Sequence[str], actions: dict[str, argparse.Action]) -> tuple[list[str], list[str]]:
    """The words for argparse, and the names of flags or keys that were given twice.

    actions: what the parser knows, by flag.
    """
    words = _with_config(words)
    result: list[str] = []
    seen: set[str] = set()
    twice: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if (not isinstance(word, _FromFile) and not word.startswith("-")) or word in ("-", "--"):
            result.append(str(word))
            continue
        name, equals, value = _long(word).partition("=")
        flag, dot, path = name.partition(".")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        action = actions.get(flag)
        if dot and isinstance(action, Merge):
            if not equals:
                if index == len(words):
                    raise GrammarError(f"argument {name}: expected one argument")
                value, index = words[index], index + 1
            result += [flag, json.dumps(_nested(path.split("."), json_value(value)))]
        else:
            result.append(flag + dot + path + equals + value)
        if action is not None and not isinstance(word, _FromFile):
            key = f"{flag}{dot}{path}" if isinstance(action, Merge) else action.dest
            if key in seen and not path.endswith("+"):
                twice.append(name)
            seen.add(key)
    return result, twice


def _long(word: str) -> str:
    """The long form of one of vLLM's short ones, with whatever follows it."""
    if word.startswith("--"):
        return word
    if word.startswith("-O") and word[2:].isdigit():
        return f"{SHORT['-O']}={word[2:]}"
    end = min((at for at in (word.find("="), word.find(".")) if at > 0), default=len(word))
    return SHORT.get(word[:end], word[:end]) + word[end:]


def _nested(keys: list[str], value: Any) -> Any:
    for key in reversed(keys):
        value = {key: value}
    return value


# ---- --config -----------------------------------------------------------------------------------------------------


class _FromFile(str):
    """A word that stands in the file: the command line may repeat it without a warning."""


def _with_config(words: Sequence[str]) -> list[str]:
    """The words with those of the --config file before them, behind the model."""
    rest: list[str] = []
    files: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        name, equals, value = word.partition("=")
        if name != "--config":
            rest.append(word)
            continue
        if not equals:
            if index == len(words):
                raise GrammarError("argument --config: expected one argument")
            value, index = words[index], index + 1
        files.append(value)
    if not files:
        return rest
    if len(files) > 1:
        raise GrammarError("argument --config: given twice; put both files' flags into one")
    at = 1 if rest and not rest[0].startswith("-") else 0
    return [*rest[:at], *_read(Path(files[0])), *rest[at:]]


def _read(path: Path) -> list[str]:
    if path.suffix not in (".yaml", ".yml"):
        raise GrammarError(f"argument --config: {str(path)!r} is not a .yaml file")
    import yaml

    try:
        settings = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GrammarError(f"argument --config: {str(path)!r} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise GrammarError(f"argument --config: {str(path)!r} is no YAML: {' '.join(str(error).split())}") from None
    if settings is None:
        return []
    if not isinstance(settings, dict):
        raise GrammarError(f"argument --config: {str(path)!r} holds no map from flags to values")
    return [_FromFile(word) for name, value in settings.items() for word in _words(str(name), value)]


def _words(name: str, value: Any) -> Iterable[str]:
    """A flag of the file as words. A model's name is its own flag, so that the command line's may stand before it."""
    flag = "--" + name.replace("_", "-")
    if flag == "--config":
        raise GrammarError("argument --config: a file cannot name another one")
    if flag in ("--model", "--model-tag"):
        return ["--config-model", str(value)]
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else "--no-" + flag[2:]]
    if isinstance(value, dict):
        return [flag, json.dumps(value)]
    if isinstance(value, list):
        return [flag, *map(str, value)] if value else []
    return [f"{flag}={value}"]


def switches(actions: dict[str, argparse.Action]) -> set[str]:
    """The flags that take no value."""
    return {name for name, action in actions.items() if isinstance(action, Switch)}
