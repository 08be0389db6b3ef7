"""The engine in a process of its own, watched: started again when it dies or hangs.

One thread owns the process: it starts it, reads what it says, and decides what becomes of requests when it ends.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, replace
from typing import Any

from sensorium.config import EngineConfig
from sensorium.engine.checkpoint import PACKAGED_MODEL, Progress, open_checkpoint, open_processor
from sensorium.engine.link import Deliver, LinkState, Supervision
from sensorium.engine.protocol import (
    Abort,
    AddVoice,
    AppendUnit,
    Control,
    EngineFacts,
    EngineStats,
    OpenSession,
    OpenSpeech,
    RefuseWaiting,
    RemoveVoice,
)
from sensorium.engine.stream import LAST
from sensorium.engine.turns import Turns
from sensorium.engine.wire import Connection, Loading, LogLine, Outbox, Pulse, Start, StartFailed
from sensorium.errors import CheckpointError, EngineDeadError, EngineError, RequestError
from sensorium.types import Event, Failed, Finished, Request, Timings, UnitFailed, Usage

log = logging.getLogger(__name__)

# What the interpreter finds is what ours finds; the program that started us is not run again.
_BOOT = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from sensorium.engine.host import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""
_STDERR = 2
_SOCKET_BYTES = 1 << 20
_END_S = 2.0
_IDLE_S = 0.02
"""How often a sleep that waits for requests looks whether they have ended."""
_SLEEPS = "the engine sleeps; POST /wake_up to wake it"
_LATE_S = 2.0
"""Pulses come once a second; one that is so late says that the whole process stands still."""
_MOST_DEATHS = 4096
_SWITCH_S = 0.001


def host_command(descriptor: int) -> list[str]:
    return [sys.executable, "-c", _BOOT, str(descriptor), str(os.getpid()), json.dumps(sys.path)]


@dataclass(slots=True)
class _Flight:
    """One accepted request until its last event. `request` is kept while it could be sent again."""

    request: Request | None
    content: tuple[Any, ...] | None
    """What its fingerprint is made of; see _content."""
    aborted: bool = False
    voice: AddVoice | None = None


class _Process:
    """One life of the engine process."""

    def __init__(self, config: EngineConfig, refused: Callable[[object, Exception], None]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
            descriptor = theirs.fileno()
            self._child = subprocess.Popen(
                host_command(descriptor), pass_fds=[descriptor], stdin=subprocess.DEVNULL, stdout=_STDERR
            )
        self.pid = self._child.pid
        self.connection = Connection(ours)
        self.outbox = Outbox(self.connection, "sensorium-engine-send", refused)
        self.outbox.put([Start(config, logging.getLogger("sensorium").getEffectiveLevel())])

    def kill(self) -> None:
        self._child.kill()

    def end(self) -> str:
        """Make it end, and say how it did."""
        self.connection.shut()
        try:
            self._child.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self.outbox.close()
        self.connection.close()
        code = self._child.returncode
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


class _Hung(Exception):
    pass


class ProcessLink:
    """See Link. The constructor starts the process, loads the processor meanwhile, and returns when both are ready."""

    def __init__(
        self, config: EngineConfig, deliver: Deliver, progress: Progress | None, supervision: Supervision
    ) -> None:
        folder, hf_config = open_checkpoint(config)
        self._config = replace(config, model=str(folder))
        self._deliver = deliver
        self._progress: Progress = progress or _unseen
        self._supervision = supervision
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._asleep, self._free, self._woken, self._up = (threading.Event() for _ in range(4))
        self._flights: dict[str, _Flight] = {}
        self._voices: dict[str, AddVoice] = {}
        """Those that an engine which starts again has to make again."""
        self._deaths: dict[int, float] = {}
        self._quarantined: dict[int, float] = {}
        self._busy_since = self._pulse_s = time.monotonic()
        self._pulse = Pulse(EngineStats(), 0.0)
        self._process: _Process | None = None
        self._first: Future[EngineFacts] = Future()
        self.state: LinkState = "loading"
        self.reason = "the engine is loading"
        self._restarts = 0
        self._thread = threading.Thread(target=self._run, name="sensorium-engine-watch", daemon=True)
        self._thread.start()
        # The thread that reads events asks for the interpreter several times for each step, and waits so long each time
        # while the caller's threads are busy. Python's own 5 ms are half of most steps.
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        try:
            self.processor = open_processor(folder, hf_config, config)
            facts = self._first.result(supervision.ready_s or None)
            self.facts = replace(facts, model_name=config.model or PACKAGED_MODEL)
        except FutureTimeoutError:
            self.close()
            limit = f"{supervision.ready_s:g} s (SENSORIUM_ENGINE_READY_TIMEOUT_S)"
            raise EngineError(f"the engine was not ready within {limit}") from None
        except BaseException:
            self.close()
            raise

    # ---- for callers -----------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """0 before the first start."""
        return self._process.pid if self._process is not None else 0

    @property
    def stuck_s(self) -> float:
        if self.state != "ready" or not self._flights:
            return 0.0
        now = time.monotonic()
        silent = max(now - self._pulse_s - _LATE_S, 0.0)
        return min(self._pulse.stuck_s + silent, now - self._busy_since)

    def stats(self) -> EngineStats:
        return replace(self._pulse.stats, restarts=self._restarts)

    def send(self, message: Request | Control) -> None:
        done: list[Event] = []
        with self._lock:
            if isinstance(message, Request):
                self._accept(message)
            elif isinstance(message, Abort):
                if (flight := self._flights.get(message.request_id)) is not None:
                    flight.aborted = True
                if self.state != "ready":
                    done = self._end_aborted()
            elif isinstance(message, RefuseWaiting) and self.state != "ready":
                done = self._fail([*self._flights], message.code, message.message)
            elif isinstance(message, OpenSession):
                self._accept_resident(message.request.id)
            elif isinstance(message, OpenSpeech):
                self._accept_resident(message.speech_id)
            elif isinstance(message, AddVoice):
                self._accept_resident(message.request_id, message)
            elif isinstance(message, RemoveVoice):
                self._voices.pop(message.name, None)
            if self.state == "ready" and self._process is not None:
                self._process.outbox.put([message])
        if done:
            self._deliver(done)

    def sleep(self, *, wait: bool = False) -> None:
        with self._lock:
            if self.state == "sleeping":
                return
            if self.state != "ready":
                raise EngineDeadError(self.reason)
            for event in (self._free, self._woken, self._up):
                event.clear()
            self.state, self.reason = "sleeping", _SLEEPS
        while wait and self._flights and not self._closing.wait(_IDLE_S):
            pass
        self._asleep.set()
        if self._process is not None:
            self._process.connection.shut()
        self._free.wait()

    def expect(self, turns: Turns) -> None:
        """It shares no interpreter with anybody."""

    def wake(self) -> None:
        if self.state == "sleeping":
            self._woken.set()
            self._up.wait()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        self._closing.set()
        self._woken.set()
        process = self._process
        if process is not None:
            process.connection.shut()
        self._thread.join()

    def _accept(self, request: Request) -> None:
        if self.state != "ready":
            raise EngineDeadError(self.reason)
        content = _content(request)
        if self._quarantined and self._quarantined.get(_fingerprint(content), 0.0) > time.monotonic():
            raise RequestError("the engine died twice while it ran this request; it is refused for some minutes")
        if not self._flights:
            self._busy_since = time.monotonic()
        self._flights[request.id] = _Flight(request, content)

    def _accept_resident(self, name: str, voice: AddVoice | None = None) -> None:
        """A session, a speech, or the making of a voice lives as long as the process that it was begun in."""
        if self.state != "ready":
            raise EngineDeadError(self.reason)
        self._flights[name] = _Flight(None, None, voice=voice)

    def _end_aborted(self) -> list[Event]:
        """End the aborted requests of which no engine knows."""
        events: list[Event] = []
        for request_id, flight in list(self._flights.items()):
            if flight.aborted and flight.request is not None:
                del self._flights[request_id]
                total_s = time.monotonic() - flight.request.arrival_s
                usage = Usage(len(flight.request.prompt.ids), 0)
                events.append(Finished(request_id, "abort", usage, Timings(total_s, None, total_s)))
        return events

    def _fail(self, ids: list[str], code: str, message: str) -> list[Event]:
        return [Failed(rid, code, message, 503) for rid in ids if self._flights.pop(rid, None) is not None]

    # ---- the watching thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._supervise()
        except BaseException as error:  # a defect of ours: nobody may be left waiting
            log.critical("the engine is watched no longer", exc_info=error)
            self._give_up(f"the link to the engine failed ({type(error).__name__}); see the server log")
        with self._lock:
            if self.state != "failed":
                self.state, self.reason = "closed", "the engine is closed"
            events = self._fail([*self._flights], "engine_dead", self.reason)
        self._deliver(events)
        self._free.set()
        self._up.set()
        if not self._first.done():
            self._first.set_exception(EngineDeadError(self.reason))

    def _supervise(self) -> None:
        """Start the engine until it is closed, or does not start any more."""
        rules = self._supervision
        short_lives = failed_starts = 0
        while not self._closing.is_set():
            began = time.monotonic()
            was_ready, cause = self._live()
            if self._closing.is_set() or self.state == "failed":
                return
            if self._asleep.is_set():
                self._rest()
                continue
            short_lives = 0 if was_ready and time.monotonic() - began > rules.healthy_s else short_lives + 1
            failed_starts = 0 if was_ready else failed_starts + 1
            if failed_starts >= rules.failed_starts:
                self._give_up(f"the engine did not start {failed_starts} times in a row; the last time: {cause}")
                return
            delay = min(rules.first_delay_s * 2 ** (short_lives - 1), rules.longest_delay_s) if short_lives else 0.0
            self._bury(cause, delay, was_ready)
            self._restarts += 1
            self._closing.wait(delay)

    def _rest(self) -> None:
        """Nothing is on the device until wake() or close()."""
        with self._lock:
            self.state, self.reason = "sleeping", _SLEEPS
            self._pulse = Pulse(EngineStats(), 0.0)
            ended = self._end_aborted() + self._fail([*self._flights], "engine_sleeping", _SLEEPS)
        self._deliver(ended)
        log.info("the engine sleeps")
        self._free.set()
        self._woken.wait()
        self._asleep.clear()
        with self._lock:
            self.state, self.reason = "restarting", "the engine is waking up"

    def _live(self) -> tuple[bool, str]:
        """One life of the process: whether it was ever ready, and how it ended."""
        try:
            process = self._process = _Process(self._config, self._refused)
        except OSError as error:
            return False, f"no process could be started: {error}"
        try:
            why = self._attend(process)
        finally:
            with self._lock:
                was_ready = self.state == "ready"
                if self.state not in ("failed", "sleeping"):
                    self.state, self.reason = "restarting", "the engine is starting again"
            how = process.end()
        return was_ready, f"{why} ({how})"

    def _attend(self, process: _Process) -> str:
        """Handle what the process says until it ends; why it did."""
        try:
            while not self._closing.is_set():
                messages = process.connection.receive(self._check)
                events = [message for message in messages if isinstance(message, Event)]
                if events:
                    self._pass_on(events)
                for message in messages:
                    if not isinstance(message, Event):
                        self._hear(message, process)
                self._check()
        except EOFError:
            return "the engine process ended"
        except _Hung:
            log.critical("the engine has finished no step for %.0f s and is killed", self.stuck_s)
            process.kill()
            return "the engine hung"
        except _Unloadable as error:
            return str(error)
        return "closed"

    def _check(self) -> None:
        if self._closing.is_set() or self._asleep.is_set():
            raise EOFError
        limit = self._supervision.kill_s
        if limit and self.stuck_s > limit:
            raise _Hung

    def _hear(self, message: object, process: _Process) -> None:
        if isinstance(message, Pulse):
            self._pulse, self._pulse_s = message, time.monotonic()
        elif isinstance(message, LogLine):
            _log_here(message)
        elif isinstance(message, Loading):
            if not self._first.done():
                self._progress(message.phase, message.share)
        elif isinstance(message, EngineFacts):
            self._ready(message, process)
        elif isinstance(message, StartFailed):
            if not self._first.done():  # it would fail again: nobody is served yet, so say so at once
                kind = CheckpointError if message.code == CheckpointError.code else EngineError
                self.state, self.reason = "failed", message.message
                self._first.set_exception(kind(message.message, param=message.param))
            raise _Unloadable(message.message)

    def _ready(self, facts: EngineFacts, process: _Process) -> None:
        """Take requests, first those that wait since the last death."""
        with self._lock:
            self._busy_since = self._pulse_s = time.monotonic()
            self._pulse = Pulse(EngineStats(), 0.0)
            waiting = [flight.request for flight in self._flights.values() if flight.request is not None]
            process.outbox.put([*self._voices.values(), *waiting])
            self.state, self.reason = "ready", ""
        self._up.set()
        if self._first.done():
            log.warning("the engine is back (process %d); %d requests were waiting", process.pid, len(waiting))
        else:
            self._first.set_result(facts)

    def _pass_on(self, events: list[Event]) -> None:
        known: list[Event] = []
        with self._lock:
            for event in events:
                flight = self._flights.get(event.request_id)
                if flight is None:
                    continue
                flight.request = None  # something of it has been seen: it cannot be done over
                known.append(event)
                if isinstance(event, LAST):
                    del self._flights[event.request_id]
                if flight.voice is not None and isinstance(event, Finished) and event.reason == "stop":
                    self._voices[flight.voice.name] = flight.voice
        self._deliver(known)

    def _bury(self, cause: str, delay: float, was_ready: bool) -> None:
        """After a death: end what had begun, keep what can be sent once more. An engine not ready had no requests."""
        rules, now = self._supervision, time.monotonic()
        with self._lock:
            stats = self._pulse.stats
            self._pulse = Pulse(replace(stats, waiting=0, running=0, kv_blocks_used=0), 0.0)
            sent = self._flights.items() if was_ready else ()
            prints = {rid: _fingerprint(flight.content) for rid, flight in sent if flight.content is not None}
            present = set(prints.values())
            twice = {one for one in present if now - self._deaths.pop(one, -math.inf) < rules.quarantine_s}
            self._quarantined = {key: until for key, until in self._quarantined.items() if until > now}
            self._quarantined |= dict.fromkeys(twice, now + rules.quarantine_s)
            self._deaths |= dict.fromkeys(present, now)
            while len(self._deaths) > _MOST_DEATHS:
                del self._deaths[next(iter(self._deaths))]
            ended = self._end_aborted()
            flights = self._flights.items()
            over = [rid for rid, flight in flights if flight.request is None or prints.get(rid) in twice]
            ended += self._fail(over, "engine_restarted", "the engine stopped and is started again; ask once more")
            waiting = len(self._flights)
        self._deliver(ended)
        log.critical("%s: %d requests end, %d wait for it; starting again in %.0f s", cause, len(ended), waiting, delay)

    def _give_up(self, reason: str) -> None:
        log.critical("%s", reason)
        with self._lock:
            self.state, self.reason = "failed", reason

    def _refused(self, message: object, error: Exception) -> None:
        if isinstance(message, Request):
            log.error("a request cannot be sent to the engine", exc_info=error)
            self._pass_on([Failed(message.id, "engine_error", "the request could not be sent to the engine")])
        elif isinstance(message, AppendUnit):
            log.error("a unit cannot be sent to the engine", exc_info=error)
            reason = "the unit could not be sent to the engine"
            self._pass_on([UnitFailed(message.session_id, message.unit.index, 0, "engine_error", reason)])
        else:
            log.error("%s cannot be sent to the engine", type(message).__name__, exc_info=error)


class _Unloadable(Exception):
    pass


def _unseen(phase: str, share: float) -> None:
    """Where nobody asked for progress."""


def _content(request: Request) -> tuple[Any, ...]:
    prompt = request.prompt
    return prompt.ids, tuple(item.key for item in prompt.media), request.sampling, request.pooling


def _fingerprint(content: tuple[Any, ...]) -> int:
    """Equal for requests that differ in their seeds at most. Not for keeping: it differs from run to run."""
    ids, keys, sampling, pooling = content
    return hash((ids, keys, repr((replace(sampling, seed=None), pooling))))


def _log_here(line: LogLine) -> None:
    logger = logging.getLogger(line.logger)
    if not logger.isEnabledFor(line.level):
        return
    record = logger.makeRecord(line.logger, line.level, "", 0, line.message, (), None)
    record.created, record.exc_text = line.created, line.error
    logger.handle(record)
