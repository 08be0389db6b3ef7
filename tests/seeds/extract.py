"""The snippets of the seed documents, in the order they stand there."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

SEEDS = Path(__file__).resolve().parents[3] / "shared" / "seeds"
_HAN = re.compile(r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]")
_BEGINS = re.compile(r"(from|import) \w|vllm serve|export |# Example|\w+ = client|\{$")


def fenced(name: str) -> list[str]:
    """Of a Markdown document: what stands between fences."""
    return re.findall(r"^```\w*\n(.*?)^```", text(name), re.DOTALL | re.MULTILINE)


def bare(name: str) -> list[str]:
    """Of a web page as text, where nothing marks code but that prose is Chinese."""
    runs: list[list[str]] = [[]]
    for line in text(name).splitlines():
        if _HAN.search(line):
            runs.append([])
        else:
            runs[-1].append(line)
    found: list[str] = []
    for run in runs:
        lines = textwrap.dedent("\n".join(run)).strip().splitlines()
        start = next((index for index, line in enumerate(lines) if _BEGINS.match(line)), None)
        if start is not None:
            found.append("\n".join(lines[start:]) + "\n")
    return found


def text(name: str) -> str:
    """The whole document."""
    (path,) = SEEDS.glob(f"{name}_*.txt")
    return path.read_text("utf-8")
