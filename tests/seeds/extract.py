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
    return re.findall(r"^```\w*\n(.*?)^```", _read(name), re.DOTALL | re.MULTILINE)


def bare(name: str) -> list[str]:
    """Of a web page as text, where nothing marks code but that prose is Chinese."""
    runs: list[list[str]] = [[]]
    for line in _read(name).splitlines():
        if _HAN.search(line):
            runs.append([])
        else:
            runs[-1].append(line)
    texts = [textwrap.dedent("\n".join(run)).strip() for run in runs]
    starts = [next((i for i, line in enumerate(text.splitlines()) if _BEGINS.match(line)), None) for text in texts]
    found = [
        "\n".join(text.splitlines()[start:]) for text, start in zip(texts, starts, strict=True) if start is not None
    ]
    return [text + "\n" for text in found]


def _read(name: str) -> str:
    (path,) = SEEDS.glob(f"{name}_*.txt")
    return path.read_text("utf-8")
