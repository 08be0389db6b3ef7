"""A benchmark's result as text: one line per setting, then one table of its rows."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """What a number must be read with."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    return {"device": device, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    lines = [f"{name}: {_text(value)}" for name, value in result.items() if name != "rows"]
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
