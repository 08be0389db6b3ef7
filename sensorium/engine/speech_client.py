"""An open speech as its caller sees it: text with hidden states in, codes out, from a thread or an event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np

from sensorium.engine.protocol import Hush, Say, SpeechControl
from sensorium.engine.session_client import failure
from sensorium.engine.stream import Stream
from sensorium.errors import EngineError, OverloadedError, RequestError
from sensorium.types import CallFailed, Codes, Event, Failed, Finished

MAX_CALLS = 32
"""Calls of one speech that may be sent and not read to their end."""


class Speech(Stream):
    """The events of one speech, to exactly one Finished or Failed, and the door for its calls.

    Every call ends in exactly one Codes with `ended`, or CallFailed; so do those that are still there when the speech
    ends. Made inside a running event loop it belongs to that loop; what is sent may be sent from anywhere.
    """

    def __init__(
        self,
        speech_id: str,
        send: Callable[[SpeechControl], None],
        abort: Callable[[str], None],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        super().__init__(speech_id, abort, loop)
        self._send = send
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._open: set[int] = set()
        self._num_unread = 0
        self._ended = False

    # ---- in --------------------------------------------------------------------------------------------------------

    def say(
        self,
        ids: Sequence[int],
        hidden: np.ndarray | None = None,
        *,
        last: bool = True,
        min_new: int | None = None,
        max_new: int | None = None,
    ) -> int:
        """Queue a call; its number. Never blocks. Arguments as in SpeechWork; hidden [len(ids), llm_dim].

        Raises RequestError, OverloadedError while MAX_CALLS are not read to their end, and EngineError once the speech
        has ended.
        """
        try:
            rows = None if hidden is None else np.array(hidden, dtype=np.float32)
            spoken = tuple(int(token) for token in ids)
        except (TypeError, ValueError) as error:
            raise RequestError(f"ids must be whole numbers and hidden an array of floats: {error}") from error
        with self._lock:
            if self._ended:
                raise EngineError(f"speech {self.request_id!r} has ended")
            if self._num_unread >= MAX_CALLS:
                raise OverloadedError(
                    f"speech {self.request_id!r} has {self._num_unread} calls that are not read to their end",
                    reason="calls",
                )
            call = next(self._numbers)
            self._open.add(call)
            self._num_unread += 1
            # Under the lock, so that calls arrive in the order of their numbers.
            self._send(Say(self.request_id, call, spoken, rows, last, min_new, max_new))
        return call

    def hush(self) -> None:
        """End the calls sent so far, and the turn: a barge-in. What they said meanwhile may still come."""
        self._send(Hush(self.request_id))

    def close(self) -> None:
        """Give the slot back at once."""
        self.abort()

    # ---- out -------------------------------------------------------------------------------------------------------

    def speak(self, ids: Sequence[int], hidden: np.ndarray | None = None, **how: object) -> list[int]:
        """Queue a call (`how`: as in say) and read to its end, past all before it. Raises what it failed with."""
        call = self.say(ids, hidden, **how)  # type: ignore[arg-type]
        codes: list[int] = []
        for event in self:
            if self._collect(event, call, codes):
                return codes
        raise EngineError(f"speech {self.request_id!r} has ended")

    async def aspeak(self, ids: Sequence[int], hidden: np.ndarray | None = None, **how: object) -> list[int]:
        call = self.say(ids, hidden, **how)  # type: ignore[arg-type]
        codes: list[int] = []
        async for event in self:
            if self._collect(event, call, codes):
                return codes
        raise EngineError(f"speech {self.request_id!r} has ended")

    def put(self, event: Event) -> None:
        if _ends_call(event):
            with self._lock:
                self._open.discard(event.call)  # type: ignore[union-attr]
        elif isinstance(event, Finished | Failed):
            with self._lock:
                self._ended = True
                left, self._open = sorted(self._open), set()
            code, message, status = "speech_closed", f"speech {self.request_id!r} was closed", 409
            if isinstance(event, Failed):
                code, message, status = event.code, event.message, event.status
            for call in left:
                super().put(CallFailed(self.request_id, call, code, message, status))
        super().put(event)

    def _read(self, event: Event) -> Event:
        if _ends_call(event):
            with self._lock:
                self._num_unread -= 1
        return super()._read(event)

    def _collect(self, event: Event, call: int, codes: list[int]) -> bool:
        """Whether the call has ended."""
        if isinstance(event, CallFailed) and event.call == call:
            raise failure(event)
        if not isinstance(event, Codes) or event.call != call:
            return False
        codes += event.codes
        return event.ended is not None


def _ends_call(event: Event) -> bool:
    return isinstance(event, CallFailed) or (isinstance(event, Codes) and event.ended is not None)
