"""argparse with the manners of this command line: - and _ are the same, typos get a suggestion, 8k means 8000."""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
import sys
from typing import Any, NoReturn

SUFFIXES = {
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    def __init__(self, **settings: object) -> None:
        settings.setdefault("formatter_class", _Formatter)
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^ =]+)", message)
        if unknown:
            near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            message += f" (did you mean {near[0]}?)" if near else f" (see {self.prog} --help)"
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        sys.exit(2)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """One line per option where it fits, and the default where there is one worth showing."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if action.default in (None, argparse.SUPPRESS, "", ()) or isinstance(action.default, bool):
            return text
        return f"{text} (default: %(default)s)"


def normalise(argv: list[str]) -> list[str]:
    """--max_model_len becomes --max-model-len; values, also those after =, stay as they are."""
    result = []
    for word in argv:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word.partition("=")
            word = name.replace("_", "-") + equals + value
        result.append(word)
    return result


def integer(text: str) -> int:
    """A whole number; k m g t count in thousands (fractions allowed), K M G T in 1024s."""
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)([kmgtKMGT]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number such as 4096, 8k or 2G")
    value = float(match[1]) * SUFFIXES.get(match[2], 1)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a JSON object")
    return value
