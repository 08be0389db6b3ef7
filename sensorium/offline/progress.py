"""The two progress bars of LLM: prompts prepared, prompts answered."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

UseTqdm = bool | Callable[..., Any]
"""Whether to show bars, or what makes one: called as tqdm is."""


class Bars:
    """Use as a context manager around the work."""

    def __init__(self, use_tqdm: UseTqdm, total: int, what: str = "prompts") -> None:
        """what: the word for what is rendered."""
        self._bars: list[Any] = []
        self._started = time.monotonic()
        self._read = self._written = 0
        if use_tqdm:
            make: Callable[..., Any] = use_tqdm if callable(use_tqdm) else tqdm
            self._bars.append(make(total=total, desc=f"Rendering {what}", dynamic_ncols=True))
            self._bars.append(make(total=total, desc="Processed prompts", dynamic_ncols=True, postfix=self._speed()))

    def rendered(self) -> None:
        if self._bars:
            self._bars[0].update(1)

    def processed(self, tokens_read: int, tokens_written: int) -> None:
        self._read += tokens_read
        self._written += tokens_written
        if self._bars:
            self._bars[1].postfix = self._speed()
            self._bars[1].update(1)

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in self._bars:
            bar.close()

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"est. speed input: {self._read / seconds:.2f} toks/s, output: {self._written / seconds:.2f} toks/s"
