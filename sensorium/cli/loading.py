"""What commands that load a model have in common: a progress bar, on terminals only, and the packaged model's voice."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from sensorium.engine.checkpoint import PACKAGED_MODEL


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


def with_voice(given: Mapping[str, Any]) -> dict[str, Any]:
    """Flags that load the packaged model's voice, unless they say otherwise: it is too small to leave out."""
    is_packaged = given["model"] in ("", PACKAGED_MODEL) and given.get("runner") != "pooling"
    return ({"init_tts": True} if is_packaged else {}) | dict(given)
