"""A session as its caller sees it: units in, events out, from a thread or an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from sensorium.engine.fed_stream import FedStream, failure
from sensorium.engine.protocol import (
    AppendUnit,
    BargeIn,
    ChangeSpeech,
    CloseSession,
    PauseSession,
    RewindSession,
    SessionControl,
)
from sensorium.errors import BusyError, EngineError, RequestError
from sensorium.types import Event, Failed, Prompt, SessionOpened, SpeechOptions, Unit, UnitDone, UnitFailed


class Session(FedStream):
    """The events of one session, to exactly one Finished or Failed, and the door for its units.

    The first event is SessionOpened, unless the session fails before. Every unit ends in exactly one UnitDone or
    UnitFailed; so do those that are still there when the session ends. `room` says how many may be appended now.
    """

    word, items, full = "session", "units", "units"

    def __init__(
        self,
        session_id: str,
        send: Callable[[SessionControl], None],
        abort: Callable[[str], None],
        loop: asyncio.AbstractEventLoop | None,
        max_units: int,
        check: Callable[[Prompt], None],
        speak: Callable[[str, SpeechOptions | None], None],
    ) -> None:
        super().__init__(session_id, send, abort, loop, max_units)
        self.turn = 0
        """What is said now. Events of earlier turns may still come: their `turn` tells."""
        self._check, self._speak = check, speak

    # ---- in --------------------------------------------------------------------------------------------------------

    @property
    def max_units(self) -> int:
        """Most units that are appended and not read to their end."""
        return self._most

    def append(
        self,
        prompt: Prompt,
        *,
        deadline_s: float | None = None,
        deciding: int | None = -1,
        options: Mapping[str, Any] | None = None,
    ) -> int:
        """Queue a unit; its index. Never blocks.

        deadline_s: when it should be over, on the monotonic clock; by default a second from now. deciding: see Unit.
        Raises RequestError, OverloadedError where there is no room, and EngineError once the session has ended.
        """
        if not prompt.ids:
            raise RequestError("a unit needs at least one token", param="prompt")
        if deciding is not None and not -len(prompt.ids) <= deciding < len(prompt.ids):
            raise RequestError(f"deciding: there is no row {deciding} of {len(prompt.ids)}", param="deciding")
        self._check(prompt)
        options = plain(options or {})
        now = time.monotonic()
        deadline_s = now + 1.0 if deadline_s is None else deadline_s
        unit = Unit(0, prompt, now, deadline_s, deciding, options)
        return self._feed(lambda index: AppendUnit(self.request_id, replace(unit, index=index)))

    def barge_in(self, options: Mapping[str, Any] | None = None) -> int:
        """End what is being said; the number of the turn that begins. The unit that runs ends early, others go on.

        Sound of it ends with "cut", and no more of an older turn comes from the engine.
        """
        options = plain(options or {})
        with self._lock:
            self.turn += 1
            self._send(BargeIn(self.request_id, self.turn, options))
            return self.turn

    def rewind(self, index: int) -> None:
        """After the units queued so far, go back to the end of unit `index` (-1: the opening prompt).

        The session fails if that end is not among its rows any more, or 64 units ago.
        """
        self._send(RewindSession(self.request_id, index))

    def change_speech(self, speech: SpeechOptions | None) -> None:
        """Speak otherwise from now on, such as with another voice, or not at all; what is being said is cut.

        Raises what open_session raises for `speech`.
        """
        self._speak(self.request_id, speech)
        self._send(ChangeSpeech(self.request_id, speech))

    def pause(self) -> None:
        """Compute nothing from the next step on; rows are kept and units may wait. What was said is still spoken."""
        self._send(PauseSession(self.request_id, True))

    def resume(self) -> None:
        self._send(PauseSession(self.request_id, False))

    def close(self) -> None:
        """End once the units appended so far are done, with Finished("stop"). abort() ends now."""
        self._send(CloseSession(self.request_id))

    # ---- out -------------------------------------------------------------------------------------------------------

    def opened(self) -> SessionOpened:
        """Wait for the opening prompt to be computed. Call it first; raises what the session failed with."""
        return self._opened(next(iter(self)))

    async def aopened(self) -> SessionOpened:
        return self._opened(await anext(aiter(self)))

    def run(self, prompt: Prompt, **how: Any) -> UnitDone:
        """Append a unit (`how`: as in append) and read to its end, past all before it. Raises what it failed with."""
        index = self.append(prompt, **how)
        for event in self:
            if (done := self._awaited(event, index)) is not None:
                return done
        raise self._over()

    async def arun(self, prompt: Prompt, **how: Any) -> UnitDone:
        index = self.append(prompt, **how)
        async for event in self:
            if (done := self._awaited(event, index)) is not None:
                return done
        raise self._over()

    def _ends(self, event: Event) -> int | None:
        return event.index if isinstance(event, UnitDone | UnitFailed) else None

    def _lost(self, number: int, code: str, message: str, status: int, turn: int) -> Event:
        return UnitFailed(self.request_id, number, turn, code, message, status)

    def _opened(self, event: Event) -> SessionOpened:
        if isinstance(event, Failed):
            raise failure(event)
        if not isinstance(event, SessionOpened):
            raise EngineError(f"session {self.request_id!r} was closed before it was open")
        return event

    def _awaited(self, event: Event, index: int) -> UnitDone | None:
        if isinstance(event, UnitFailed) and event.index == index:
            raise failure(event)
        return event if isinstance(event, UnitDone) and event.index == index else None


def plain(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """RequestError unless the options can cross to an engine process."""
    try:
        msgspec.msgpack.encode(options)
    except (TypeError, ValueError, OverflowError, UnicodeEncodeError) as error:
        raise RequestError(f"options must be plain values: {error}", param="options") from error
    return options


class SessionPlaces:
    """Counts open sessions: each pins the rows it may hold, and room for the longest request must be left."""

    def __init__(self, max_sessions: int, kv_tokens: int, block_size: int, reserved: int) -> None:
        self._max_sessions = max_sessions
        self._block_size = block_size
        self._blocks = (kv_tokens - reserved) // block_size
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._held)

    def take(self, session_id: str, max_len: int) -> None:
        """Raises BusyError where there is no place."""
        if len(self._held) >= self._max_sessions:
            raise BusyError(
                f"{len(self._held)} sessions are open, as many as max_sessions allows; try again later",
                reason="sessions",
            )
        # One more than it fills: rows that move may need a block before they give one back.
        blocks = -(-max_len // self._block_size) + 1
        free = self._blocks - sum(self._held.values())
        if blocks > free:
            raise BusyError(
                f"a session of {max_len} tokens does not fit: {max(free, 0) * self._block_size} are left beside "
                f"{len(self._held)} sessions and the longest request; try again later, ask for a smaller max_len, or "
                "serve with a larger KV cache or a smaller max_model_len",
                reason="kv",
            )
        self._held[session_id] = blocks

    def give_back(self, session_id: str) -> None:
        self._held.pop(session_id, None)
