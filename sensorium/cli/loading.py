"""A progress bar for loading a model, on terminals only."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn


class LoadingBar:
    """Shows what EngineClient reports while it loads: a phase, and the share of it that is done."""

    def __init__(self, shown: bool = True) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=not (shown and sys.stderr.isatty())
        )
        self._tasks: dict[str, TaskID] = {}

    def update(self, phase: str, share: float) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=1.0)
        self._bar.update(self._tasks[phase], completed=share)

    def __enter__(self) -> LoadingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()
