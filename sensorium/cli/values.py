"""How the values of flags are read: numbers a person writes, JSON objects that merge, switches with two names."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sensorium.config import FIT

SUFFIXES = {
    "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
    "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40,
}  # fmt: skip
_SHOWN = 80


def _invalid(kind: str, text: str, hint: str = "") -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"invalid {kind} value: {text[:_SHOWN]!r}{hint}")


def integer(text: str) -> int:
    """A whole number; k m g t count in thousands (fractions allowed), K M G T in 1024s."""
    match = re.fullmatch(r"(-?\d+)(\.\d+)?([kmgtKMGT]?)", text)
    if not match:
        raise _invalid("whole number", text, "; write 4096, 8k or 2G")
    if match[2] and match[3].isupper():
        raise _invalid("whole number", text, f"; fractions go with {match[3].lower()}: {text.lower()}")
    value = float(match[1] + (match[2] or "")) * SUFFIXES.get(match[3], 1) if match[2] else 0
    if value != int(value):
        raise _invalid("whole number", text)
    return int(value) if match[2] else int(match[1]) * SUFFIXES.get(match[3], 1)


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _invalid("number", text)
    return value


def context_length(text: str) -> int:
    return FIT if text == "auto" else integer(text)


def mebibytes(text: str) -> int:
    return integer(text) << 20


def optional_text(text: str) -> str | bool:
    """Text, or True for a flag given without any."""
    return text or True


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise _invalid("JSON object", text)
    return value


def graph_settings(text: str) -> dict[str, Any]:
    """A JSON object, or its `mode` as a number alone."""
    return {"mode": int(text)} if re.fullmatch(r"[0-9]{1,3}", text) else json_object(text)


def media_counts(text: str) -> dict[str, Any]:
    """A JSON object, or the retired form image=5,video=2."""
    pairs = re.fullmatch(r"\w+=\d+(,\w+=\d+)*", text)
    if not pairs:
        return json_object(text)
    return {name: int(count) for name, count in (pair.split("=") for pair in text.split(","))}


def json_value(text: str) -> Any:
    """What a dotted flag's value is: JSON, else a number with a suffix, else text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return integer(text)
    except argparse.ArgumentTypeError:
        return text


def merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Deep, the new one winning; a key that ends in + appends to a list."""
    merged = dict(old)
    for key, value in new.items():
        if key.endswith("+"):
            before = merged.get(key[:-1], [])
            more = value if isinstance(value, list) else str(value).split(",")
            merged[key[:-1]] = [*(before if isinstance(before, list) else [before]), *more]
        elif isinstance(value, dict):
            before = merged.get(key)
            merged[key] = merge(before if isinstance(before, dict) else {}, value)
        else:
            merged[key] = value
    return merged


# ---- actions ------------------------------------------------------------------------------------------------------


class Merge(argparse.Action):
    """A JSON object given whole or by dotted keys, any number of times."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, merge(getattr(namespace, self.dest, None) or {}, values))


class List(argparse.Action):
    """Words, or one JSON list; tuples in the configuration."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        values = [values] if isinstance(values, str) else values
        if len(values) == 1 and isinstance(values[0], str) and values[0].startswith("["):
            try:
                values = json.loads(values[0])
            except (ValueError, RecursionError):
                parser.error(f"argument {option}: invalid JSON list value: {values[0][:_SHOWN]!r}")
        setattr(namespace, self.dest, tuple(values))


class CommaList(argparse.Action):
    """As List, and words may also be separated by commas."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        List.__call__(self, parser, namespace, values, option)  # type: ignore[arg-type]
        words = [part.strip() for word in getattr(namespace, self.dest) for part in word.split(",")]
        setattr(namespace, self.dest, tuple(word for word in words if word))


class Switch(argparse.Action):
    """--x and --no-x; for --enable-x also --disable-x, and the other way round. !--y is a name for no."""

    def __init__(self, option_strings: Sequence[str], dest: str, names: Sequence[str] = (), **rest: Any) -> None:
        self.values: dict[str, bool] = {}
        for name in names or option_strings:
            yes, name = not name.startswith("!"), name.lstrip("!")
            self.values |= {name: yes, "--no-" + name[2:]: not yes}
            for one, other in (("--enable-", "--disable-"), ("--disable-", "--enable-")):
                if name.startswith(one):
                    self.values.setdefault(other + name.removeprefix(one), not yes)
        super().__init__(list(self.values), dest, nargs=0, **rest)

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        setattr(namespace, self.dest, self.values[option or ""])

    def format_usage(self) -> str:
        return " | ".join(self.option_strings[:2])
