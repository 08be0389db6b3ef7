"""Admission of live sessions: counted places, a bounded queue, sessions that wait for their client to come back."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sensorium.config import ServerConfig
from sensorium.errors import BusyError, NotFoundError, OverloadedError, SensoriumError, ShuttingDownError
from sensorium.media import audio
from sensorium.server.live.clock import Clock, MonotonicClock
from sensorium.server.live.events import Queued
from sensorium.server.live.metrics import LiveMetrics
from sensorium.server.live.opening import Limits, LiveOptions, Opening
from sensorium.server.live.session import LiveSession
from sensorium.server.seats import Seats
from sensorium.server.served import Served
from sensorium.server.speech.voices import Voices, owner_of
from sensorium.types import Media, SpeechOptions

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient

TICK_S = 1.0
TOLD_S = 3.0
"""How often those who wait are told their place."""
TYPICAL_S, LEARNING_RATE, MIN_SAMPLES = 120.0, 0.3, 3
"""How long a session is thought to last, until so many have ended; then the average, each new one weighing so much."""


@dataclass(slots=True)
class Estimate:
    """How long sessions last."""

    seconds: float = TYPICAL_S
    _seen: list[float] = field(default_factory=list[float])

    def learn(self, seconds: float) -> None:
        if len(self._seen) < MIN_SAMPLES:
            self._seen.append(seconds)
            if len(self._seen) == MIN_SAMPLES:
                self.seconds = sum(self._seen) / MIN_SAMPLES
        else:
            self.seconds += LEARNING_RATE * (seconds - self.seconds)

    def wait(self, position: int, ages: list[float]) -> float:
        """Seconds until whoever stands at `position` gets a place, with sessions of such ages on them."""
        left = sorted(max(self.seconds - age, 1.0) for age in ages) or [1.0]
        rounds, place = divmod(position - 1, len(left))
        return left[place] + rounds * self.seconds


class LiveService:
    """Owned by the application; belongs to its event loop."""

    def __init__(
        self,
        served: Served,
        config: ServerConfig,
        metrics: LiveMetrics,
        voices: Voices,
        seats: Seats,
        clock: Clock | None = None,
    ) -> None:
        self._voices = voices
        self.clock = clock or MonotonicClock()
        self.limits = Limits(
            max_s=config.live_max_s,
            max_len=config.live_max_len,
            outlives_engine=config.live_restart == "continue",
        )
        self.seats = seats
        self.metrics = metrics
        self._served = served
        self._max_queue = config.max_live_queue
        self._queue: deque[LiveSession] = deque()
        self._open: dict[str, LiveSession] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._estimate = Estimate()
        self._told_s = 0.0
        self._is_draining = False
        self.num_sockets = 0
        """Clients that are being told something; kept by the doors."""

    @property
    def num_sessions(self) -> int:
        """Those that have a place, and those that wait."""
        return len(self._open) + len(self._queue)

    @property
    def is_idle(self) -> bool:
        """Whether there is no session, and nobody is still being told of the end of one."""
        return not self.num_sessions and not self.num_sockets

    async def open(self, options: LiveOptions) -> LiveSession:
        """A session, which may have to wait: its events say so. Close it with end().

        A model that does not speak answers in text, whatever is asked for. Raises what is wrong with the options,
        UnsupportedError for a model that holds no sessions, OverloadedError where the queue is full too or the key has
        its share, and EngineDeadError.
        """
        session_id = f"live_{secrets.token_hex(12)}"
        _, opening = await self._opening(session_id, options)
        if self._is_draining:
            raise ShuttingDownError("the server is shutting down")
        if len(self._queue) >= max(self._max_queue, 1):
            raise self._full()
        self.seats.take(options.key)
        session = LiveSession(session_id, options, opening, self.limits, self.clock, self.metrics)
        session.on_closed = lambda: self.seats.give_back(options.key)
        session.reopen = lambda: self._opening(session_id, options)
        self._queue.append(session)
        try:
            self._advance(raising=session)
            if session in self._queue and not self._max_queue:
                raise self._full()
        except BaseException:
            if session in self._queue:
                self._queue.remove(session)
            self.seats.give_back(options.key)
            raise
        if session in self._queue:
            self._tell_places()
        if self._ticking is None:
            self._ticking = asyncio.create_task(self._tick())
        return session

    async def _opening(self, session_id: str, options: LiveOptions) -> tuple[EngineClient, Opening]:
        client = self._served.client()
        prompts = client.live(session_id)
        max_len = min(self.limits.max_len, client.max_model_len)
        speech, clip = await self._speech(client, options)
        if options.reference is not None:
            clip = audio.from_array(options.reference, part="reference")
        prompt, policy = await asyncio.to_thread(prompts.opening, options.settings, max_len, clip)
        return client, Opening(prompts, prompt, policy, max_len, speech)

    async def _speech(self, client: EngineClient, options: LiveOptions) -> tuple[SpeechOptions | None, Media | None]:
        """How a session speaks, if it does, and the recording of its voice. Raises RequestError for its name."""
        is_known = options.voice is not None or self._voices.has_default(client)
        if not (options.sound and client.can_sound and is_known):
            return None, None
        voice = await self._voices.pick(options.voice, owner_of({"key": options.key}), client, "voice")
        return SpeechOptions(voice.name, "duplex", seed=options.settings.seed), voice.clip

    def _full(self) -> OverloadedError:
        waits = self._wait(len(self._queue) + 1)
        error = OverloadedError(
            f"all places for live sessions are taken, and {len(self._queue)} wait; try again later",
            reason="sessions",
            retry_after_s=waits,
        )
        error.code = "queue_full"
        return error

    # ---- taking up -------------------------------------------------------------------------------------------------

    def token(self, session: LiveSession) -> str:
        """A new token to take the session up with; the one before is void."""
        session.token = secrets.token_urlsafe(24)
        return session.token

    def take_up(self, session_id: str, token: str, key: str) -> LiveSession:
        """An open session of the same key. Raises NotFoundError, which does not say why."""
        session = self._open.get(session_id)
        known = session.token if session is not None else ""
        is_right = hmac.compare_digest(known.encode(), token.encode("utf-8", "replace")) and bool(known)
        if session is None or session.is_over or not is_right or session.options.key != key:
            error = NotFoundError("there is no such session, or the token is not its latest one", param="session")
            error.code = "session_not_found"
            raise error
        session.token = ""  # it has served; whoever comes next with it is too late
        session.attach()
        return session

    # ---- the end ---------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Refuse new sessions; let those that speak finish. Safe to call again."""
        if self._is_draining:
            return
        self._is_draining = True
        for session in (*self._queue, *self._open.values()):
            if session.opened_s is None:
                session.end("shutting_down")
            else:
                session.drain()
        self._queue.clear()

    def leave(self, session: LiveSession) -> None:
        """The client of a session has gone for good."""
        session.end("stopped")
        if session in self._queue:
            self._queue.remove(session)
            self._tell_places()

    # ---- places ----------------------------------------------------------------------------------------------------

    def _advance(self, raising: LiveSession | None = None) -> None:
        """Give places to those at the head. raising: the session whose refusal is raised, not told."""
        while self._queue:
            session = self._queue[0]
            try:
                client = self._served.client()
                session.begin(client)
            except BusyError as error:
                # Where nobody holds a place, waiting for one to become free is in vain.
                client = self._served.client()
                if self._open or client.num_sessions or client.num_speaking:
                    return
                self._refuse(session, error, raising)
                continue
            except SensoriumError as error:
                self._refuse(session, error, raising)
                continue
            self._queue.popleft()
            self._open[session.id] = session
            self.metrics.open = len(self._open)
            task = asyncio.create_task(self._run(session))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _refuse(self, session: LiveSession, error: SensoriumError, raising: LiveSession | None) -> None:
        self._queue.popleft()
        if session is raising:
            raise error
        session.close_with("failed", error)

    async def _run(self, session: LiveSession) -> None:
        try:
            await session.run()
        finally:
            del self._open[session.id]
            self.metrics.open = len(self._open)
            self._estimate.learn(session.usage.seconds)
            self._advance()
            self._tell_places()

    def _tell_places(self) -> None:
        self._told_s = self.clock.now()
        self.metrics.queued = len(self._queue)
        for position, session in enumerate(self._queue, 1):
            session.tell(Queued(position, self._wait(position)))

    def _wait(self, position: int) -> float:
        now = self.clock.now()
        ages = [now - session.opened_s for session in self._open.values() if session.opened_s is not None]
        return self._estimate.wait(position, ages)

    async def _tick(self) -> None:
        """While there are sessions: look at their clocks, and at places that others gave back."""
        while self.num_sessions:
            await self.clock.sleep_until(self.clock.now() + TICK_S)
            now = self.clock.now()
            for session in (*self._open.values(), *self._queue):
                session.tick(now)
            self._advance()
            if self._queue and now - self._told_s >= TOLD_S:
                self._tell_places()
        self._ticking = None
