"""The engine's sessions: control messages in, units through the scheduler, what is decided back to the policy, events.

Units of different sessions and requests share steps; this only says what comes next in each session.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sensorium.engine.answers import Spoken
from sensorium.engine.counters import UnitCounters
from sensorium.engine.detokenizer import Detokenizer
from sensorium.engine.protocol import (
    AppendUnit,
    BargeIn,
    ChangeSpeech,
    CloseSession,
    OpenSession,
    PauseSession,
    RewindSession,
    SessionControl,
)
from sensorium.engine.resident import Resident, RowMoves
from sensorium.engine.runner import Runner
from sensorium.engine.sampler import Unsampled
from sensorium.engine.scheduler import Scheduler, Work
from sensorium.engine.session import Rewind, Session
from sensorium.engine.session_voice import SessionVoice
from sensorium.engine.speakers import Speakers
from sensorium.engine.turn_policy import TurnPolicy
from sensorium.errors import OverloadedError, RequestError, SensoriumError
from sensorium.models.base import SessionPolicy, Tokenizer
from sensorium.types import (
    Decision,
    Event,
    Failed,
    Finished,
    FinishReason,
    SessionOpened,
    SpeechOptions,
    Splice,
    Timings,
    Unit,
    Usage,
)

log = logging.getLogger(__name__)


class Sessions:
    """Belongs to the engine's thread. Events of a call are appended to the list that it is given."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        speakers: Speakers,
    ) -> None:
        self._scheduler, self._runner, self._tokenizer, self._clock = scheduler, runner, tokenizer, clock
        self._deciders = runner.readout.deciders
        self.policies: dict[str, Any] = {"turn": TurnPolicy} | dict(getattr(runner.model, "session_policies", {}))
        """Name -> class; what may be opened."""
        self.counted = UnitCounters()
        self._sessions: dict[str, Session] = {}
        self._moves: dict[str, RowMoves] = {}
        """Of sessions that changed, not carried out yet."""
        self._speakers = speakers
        self._voices: dict[str, SessionVoice] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    @property
    def num_waiting(self) -> int:
        """Units that have come and not begun."""
        return sum(len(session.queued) for session in self._sessions.values())

    def policy(self, session_id: str) -> SessionPolicy:
        """What decides in an open session (tests)."""
        return self._sessions[session_id].policy

    # ---- control ---------------------------------------------------------------------------------------------------

    def take(self, message: SessionControl, events: list[Event]) -> None:
        """Carry out a message; a session that cannot go on fails alone."""
        if isinstance(message, OpenSession):
            self._open(message, events)
            return
        session = self._sessions.get(message.session_id)
        if session is None:  # it has ended meanwhile; its last event is out already
            return
        try:
            if isinstance(message, AppendUnit):
                self._push(session, message.unit, events)
            elif isinstance(message, RewindSession):
                session.queued.append(Rewind(message.index))
            elif isinstance(message, PauseSession):
                session.seq.is_paused = message.paused
            elif isinstance(message, ChangeSpeech):
                self._change_speech(session, message.options, events)
            elif isinstance(message, CloseSession):
                session.is_closing, session.seq.is_paused = True, False
            elif message.turn > session.turn:
                self._barge_in(session, message, events)
            self._begin(session, events)
        except Exception as error:
            self._fail_with(session, error, events)

    def _open(self, message: OpenSession, events: list[Event]) -> None:
        request = message.request
        try:
            policy = self._make_policy(message)
            seq = Resident(request, message.max_len, message.deadline_s)
            detokenizer = Detokenizer(self._tokenizer, request.sampling)
            session = Session(seq, policy, detokenizer, message.max_units, message.return_hidden)
            if message.speech is not None:
                self._voices[request.id] = self._make_voice(request.id, policy, message.speech)
        except SensoriumError as error:
            events.append(Failed(request.id, error.code, error.message, error.status, error.param))
            return
        except Exception as error:
            log.exception("a session could not be opened")
            events.append(Failed(request.id, "engine_error", f"the session's policy failed ({type(error).__name__})"))
            return
        self._sessions[request.id] = session
        self._deciders.open(request.id, policy)
        self._scheduler.add(seq)
        if not seq.ids:
            self._opened(session, events)

    def _make_policy(self, message: OpenSession) -> SessionPolicy:
        kind = self.policies.get(message.policy)
        if kind is None:
            known = ", ".join(sorted(self.policies))
            raise RequestError(f"policy: {message.policy!r} is unknown; this model has {known}", param="policy")
        return kind(self._tokenizer, message.request.sampling, message.options)

    def _make_voice(self, session_id: str, policy: SessionPolicy, options: SpeechOptions) -> SessionVoice:
        spoken = Spoken(self._tokenizer) if isinstance(policy, TurnPolicy) else None
        return SessionVoice(self._speakers, session_id, options, spoken)

    def _change_speech(self, session: Session, options: SpeechOptions | None, events: list[Event]) -> None:
        """What was being said is cut; of a unit that goes on, what it says from now on is spoken."""
        name = session.seq.id
        if (old := self._voices.pop(name, None)) is not None:
            old.close(events)
        if options is not None:
            voice = self._voices[name] = self._make_voice(name, session.policy, options)
            voice.num_seen = len(self._deciders.rows(name))

    def _opened(self, session: Session, events: list[Event]) -> None:
        session.opened()
        events.append(SessionOpened(session.seq.id, len(session.seq.ids)))
        self._begin(session, events)

    def _push(self, session: Session, unit: Unit, events: list[Event]) -> None:
        if len(session.queued) >= session.max_units:
            reason = f"session {session.seq.id!r} is {len(session.queued)} units behind"
            self._unit_failed(session, unit, OverloadedError.code, reason, OverloadedError.status, events)
        else:
            session.queued.append(unit)

    def _begin(self, session: Session, events: list[Event]) -> None:
        """Let the next unit run, if the session is ready for it."""
        while session.is_ready and session.queued:
            item = session.queued.popleft()
            if isinstance(item, Rewind):
                self._rewind(session, item.index, events)
                continue
            try:
                session.begin(item)
            except RequestError as error:
                self._unit_failed(session, item, error.code, error.message, error.status, events)
            else:
                if session.seq.id in self._voices:
                    self.counted.begun(session.seq.id, item)
        if session.is_over and session.seq.id not in self._voices:
            self.finish(session.seq.id, "stop", events)

    def release(self, events: list[Event]) -> None:
        """End the sessions that are over and have said all."""
        quiet = [name for name, voice in self._voices.items() if voice.is_quiet and self._sessions[name].is_over]
        for name in quiet:
            self.finish(name, "stop", events)

    def _barge_in(self, session: Session, message: BargeIn, events: list[Event]) -> None:
        self.counted.barge_ins += 1
        if session.is_open:
            session.seq.ids.extend(session.policy.interrupt(message.options))
        if session.unit is not None:
            self._end(session, events, defer=True, interrupted=True)
        if (voice := self._voices.get(session.seq.id)) is not None:
            voice.cut(events)
        session.turn = message.turn
        session.detokenizer = Detokenizer(self._tokenizer, session.seq.request.sampling)

    def _rewind(self, session: Session, index: int, events: list[Event]) -> None:
        self._splice(session, Splice(session.end_of(index), None))
        session.rewound(index)
        if (voice := self._voices.get(session.seq.id)) is not None:
            voice.cut(events)

    # ---- a step ----------------------------------------------------------------------------------------------------

    def advance(self, work: Work, decided: Decision | Unsampled | None, now: float, events: list[Event]) -> None:
        """A work of a session is computed; `decided` is what came of it, if its deciding row was in it."""
        session = self._sessions[work.seq.id]
        self._scheduler.complete(work)
        try:
            if session.splices and session.is_computed:
                self._change(session)
                self._begin(session, events)
            elif isinstance(decided, Unsampled):
                self.fail(session.seq.id, decided.message, events, decided.code, decided.status)
            elif decided is not None:
                self._follow(session, decided, now, events)
            elif session.is_fed:
                self._end(session, events, defer=True)
                self._begin(session, events)
            elif not session.is_open and session.seq.computed == len(session.seq.ids):
                self._opened(session, events)
        except Exception as error:
            self._fail_with(session, error, events)

    def _follow(self, session: Session, decision: Decision, now: float, events: list[Event]) -> None:
        delta = session.follow(decision, now)
        if delta is not None:
            events.append(delta)
            if (voice := self._voices.get(session.seq.id)) is not None:
                voice.goes_on(session, self._deciders.rows(session.seq.id, voice.num_seen), events)
        if decision.flush and session.return_hidden:
            rows = self._deciders.rows(session.seq.id, session.num_told)
            events.append(session.part(self._host(rows)))
        if decision.end:
            self._end(session, events, defer=decision.defer)
            self._begin(session, events)

    def _end(self, session: Session, events: list[Event], *, defer: bool, interrupted: bool = False) -> None:
        unit, outcome = session.end(defer=defer)
        info = outcome.info
        done = session.done(unit, info, self._clock(), interrupted=interrupted)
        if (voice := self._voices.get(session.seq.id)) is not None:
            speech = None if interrupted else outcome.speech
            rows = self._deciders.rows(session.seq.id, voice.num_seen)
            done = replace(done, speaks=voice.unit_over(done, rows, speech, events))
        if defer or session.is_computed:
            self._change(session)
        if session.return_hidden:
            done = replace(done, hidden=self._host(self._deciders.rows(session.seq.id)))
        self._deciders.clear(session.seq.id)
        self.counted.ended(done)
        events.append(done)

    def _host(self, rows: list[torch.Tensor]) -> np.ndarray:
        """Hidden rows as float32 [n, E]."""
        if not rows:
            return np.zeros((0, self._runner.model.hidden_size), np.float32)
        return torch.stack(rows).float().cpu().numpy()

    def _change(self, session: Session) -> None:
        splices, session.splices = session.splices, ()
        for splice in splices:
            self._splice(session, splice)

    def _splice(self, session: Session, splice: Splice) -> None:
        seq = session.seq
        start, stop = splice.start, len(seq.ids) if splice.stop is None else splice.stop
        if not 0 <= start <= stop <= len(seq.ids):
            raise ValueError(f"rows {start} to {stop} of a session of {len(seq.ids)} cannot be replaced")
        if seq.id in self._moves:
            self.move_rows()
        moves = self._scheduler.splice(seq, start, stop, list(splice.ids))
        if moves is not None:
            self._moves[seq.id] = moves
        session.move_ends(start, stop, len(splice.ids) - (stop - start))

    def move_rows(self) -> None:
        """Move the rows of all sessions that changed; before the next step.

        What one session wrote to may have been read by another before, never after: blocks that it frees are only
        written to by those who get them.
        """
        if self._moves:
            moves, self._moves = list(self._moves.values()), {}
            self._runner.move_rows(RowMoves.joined(moves))

    # ---- endings ---------------------------------------------------------------------------------------------------

    def media_failed(self, key: bytes, message: str, events: list[Event]) -> set[str]:
        """A media item could not be encoded: the unit fails alone. The sessions whose rows are others now."""
        touched = [one for one in self._sessions.values() if any(item.key == key for item in one.seq.media)]
        for session in touched:
            try:
                if session.unit is None:
                    self.fail(session.seq.id, message, events)
                else:
                    self._undo(session, message, events)
            except Exception as error:
                self._fail_with(session, error, events)
        return {session.seq.id for session in touched}

    def _undo(self, session: Session, message: str, events: list[Event]) -> None:
        unit, start, previous = session.drop()
        self._deciders.clear(session.seq.id)
        self._splice(session, Splice(start, None))
        session.policy.rewind(previous)
        self._unit_failed(session, unit, "engine_error", message, 500, events)
        self._begin(session, events)

    def _unit_failed(
        self, session: Session, unit: Unit, code: str, message: str, status: int, events: list[Event]
    ) -> None:
        self.counted.failed += 1
        self.counted.dropped(session.seq.id, unit.index)
        events.append(session.failed(unit, code, message, status))

    def finish(self, session_id: str, reason: FinishReason, events: list[Event]) -> None:
        session = self._remove(session_id, events)
        seq, now = session.seq, self._clock()
        arrival = seq.request.arrival_s
        usage = Usage(session.num_rows, session.num_said, seq.cached)
        events.append(Finished(seq.id, reason, usage, Timings(0.0, None, now - arrival), turn=session.turn))

    def fail(
        self, session_id: str, message: str, events: list[Event], code: str = "engine_error", status: int = 500
    ) -> None:
        session = self._remove(session_id, events)
        events.append(Failed(session_id, code, message, status, turn=session.turn))

    def _fail_with(self, session: Session, error: Exception, events: list[Event]) -> None:
        if session.seq.id not in self._sessions:
            return
        if isinstance(error, SensoriumError):
            self.fail(session.seq.id, error.message, events, error.code, error.status)
        else:
            log.error("a session failed", exc_info=error)
            self.fail(session.seq.id, f"the session failed ({type(error).__name__})", events)

    def fail_all(self, message: str, code: str, status: int) -> list[Event]:
        events: list[Event] = []
        for session_id in list(self._sessions):
            self.fail(session_id, message, events, code, status)
        return events

    def _remove(self, session_id: str, events: list[Event]) -> Session:
        if (voice := self._voices.pop(session_id, None)) is not None:
            voice.close(events)
        session = self._sessions.pop(session_id)
        self.counted.dropped(session_id)
        if session_id in self._moves:
            self.move_rows()  # while the blocks are its own
        self._scheduler.finish(session.seq)
        self._deciders.forget(session_id)
        if (drop := getattr(self._runner.model, "drop_stream", None)) is not None:
            drop(session_id)
        return session
