"""What an EngineClient knows of its engine, wherever that runs: a link that takes requests and gives back events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from sensorium.engine.protocol import Control, EngineFacts, EngineStats
from sensorium.engine.turns import Turns
from sensorium.models.base import Processor
from sensorium.types import Event, Request

Kind = Literal["thread", "process"]
LinkState = Literal["loading", "ready", "sleeping", "restarting", "failed", "closed"]
Deliver = Callable[[list[Event]], None]
"""Takes the events of one step, or those of a death. Called from the link's own thread, never from two at once."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """When an engine counts as hung or given up. Seconds, but for the last field.

    A step of a large model on a slow device may take longer than `kill_s`; 0 is never.
    """

    stall_s: float = 12.0
    """Work and no step for so long: not healthy."""
    kill_s: float = 60.0
    """Work and no step for so long: killed and started again. An engine in a thread is only reported."""
    ready_s: float | None = None
    """An engine process that takes longer to load for the first time is given up; None or 0 is never."""
    first_delay_s: float = 1.0
    """Before the second start in a row; doubles from there."""
    longest_delay_s: float = 60.0
    healthy_s: float = 60.0
    """An engine that was ready for so long starts again without delay."""
    quarantine_s: float = 600.0
    """How long a request that was there at two deaths is refused, and how far apart two such deaths may be."""
    failed_starts: int = 5
    """So many starts in a row that end before the engine is ready, and it is given up."""


class Link(Protocol):
    """One engine. Every Request, OpenSession, OpenSpeech and AddVoice sent ends in exactly one Finished or Failed."""

    @property
    def facts(self) -> EngineFacts: ...

    @property
    def processor(self) -> Processor:
        """In the caller's process, whatever the kind."""
        ...

    @property
    def state(self) -> LinkState: ...

    @property
    def reason(self) -> str:
        """Why the state is not ready, for people."""
        ...

    @property
    def stuck_s(self) -> float:
        """How long there has been work and no step has ended; 0 without work."""
        ...

    @property
    def pid(self) -> int:
        """The process that the engine runs in."""
        ...

    def stats(self) -> EngineStats: ...

    def expect(self, turns: Turns) -> None:
        """turns: of callers of this process that prepare requests in their own threads. An engine that shares the
        interpreter with them lets them finish before a first step, and holds them while it launches one."""
        ...

    def send(self, message: Request | Control) -> None:
        """Never blocks. For one of those, raises EngineDeadError where no engine could take it."""
        ...

    def sleep(self, *, wait: bool = False) -> None:
        """Free the device until wake(), and block until it is free. Nothing new is taken meanwhile; what is in flight
        ends with Failed("engine_sleeping"), or is waited for.

        Raises UnsupportedError where the engine is not a process of its own.
        """
        ...

    def wake(self) -> None:
        """Start again after sleep(); blocks until the engine is there, or has been given up."""
        ...

    def kill(self) -> None:
        """End the engine at once where that is possible; safe in a signal handler."""
        ...

    def close(self) -> None:
        """End the engine and everything that belongs to it; what is in flight ends with Failed("engine_dead")."""
        ...
