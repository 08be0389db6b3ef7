"""A benchmark's result as text: one line per setting, then one table of its rows. No torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float]:
    """How a measurement that was repeated is written down."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    lines = [f"{name}: {_text(value)}" for name, value in result.items() if name != "rows"]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_text(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(lines)


def show(result: dict[str, Any], file: str | None) -> None:
    """Print the table; with a file, write the JSON there too, or with "-" print that in place of the table."""
    written = json.dumps(result, indent=1)
    if file == "-":
        print(written)
        return
    if file is not None:
        Path(file).write_text(written + "\n", "utf-8")
    print(table(result))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict) and list(value) == ["median", "lowest", "highest"]:
        return f"{value['median']:.4g} ({value['lowest']:.4g} to {value['highest']:.4g})"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
