"""One live session: what its client sends becomes units for the engine, what the engine tells becomes events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sensorium.errors import (
    BusyError,
    ContextLengthError,
    EngineDeadError,
    EngineError,
    RequestError,
    SensoriumError,
)
from sensorium.media import frame_list
from sensorium.params import LiveSettings
from sensorium.server.live.clock import Clock
from sensorium.server.live.events import Closed, Event, Late, Muted, Opened, Paused, Reason, Restarted, Usage, Wrong
from sensorium.server.live.metrics import LiveMetrics
from sensorium.server.live.opening import Limits, LiveOptions, Opening
from sensorium.server.live.told import Handed, Narrator
from sensorium.server.live.units import Backlog, LiveUnit, Pace, UnitCutter
from sensorium.types import ChatOptions, MediaRef, Prepared, Prompt, UnitFailed

if TYPE_CHECKING:
    from sensorium.engine.client import EngineClient
    from sensorium.engine.session_client import Session

log = logging.getLogger(__name__)
MAX_TEXT = 4096
IN_ENGINE = 2
"""Units that the engine holds of a session: the one it computes, and the one after it."""
UNIT_S = 1.0
RESTART_S, RETRY_S = 60.0, 0.25
"""How long a session waits for an engine that starts again, and how often it looks."""


class LiveSession:
    """Made by LiveService.open. What is sent never blocks; iterate it, once, to exactly one Closed."""

    def __init__(
        self,
        session_id: str,
        options: LiveOptions,
        opening: Opening,
        limits: Limits,
        clock: Clock,
        metrics: LiveMetrics,
    ) -> None:
        self.id = session_id
        self.options = options
        self.limits = limits
        self.opened_s: float | None = None
        """When it got its place."""
        self.on_closed: Callable[[], object] = lambda: None
        """Called once, at the end."""
        self.reopen: Callable[[], Awaitable[tuple[EngineClient, Opening]]]
        """What it begins with in another engine. Raises EngineDeadError while there is none."""
        self.token = ""
        """What it may be taken up with; see LiveService.token."""
        self._opening = opening
        self._clock = clock
        self._metrics = metrics
        self._settings = options.settings
        self._max_slices = options.max_slices
        self._cutter = UnitCutter(options.max_frames)
        self._num_superseded = 0
        self._backlog = Backlog()
        self._pace = Pace(clock.now())
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._narrator = Narrator(self._tell, clock, metrics, opening.max_len)
        self._engine: Session | None = None
        self._client: EngineClient | None = None
        self._reason: Reason | None = None
        self._closed: Closed | None = None
        self._feeding = asyncio.Event()
        self._room = asyncio.Event()
        self._heard_s = clock.now()
        self._paused_s: float | None = None
        self._pause_s = limits.pause_s
        self._detached_s: float | None = None
        self._is_draining = self._is_finishing = False
        self._started_s = clock.now()
        self._played_s: float | None = None

    # ---- what the service does -------------------------------------------------------------------------------------

    def begin(self, client: EngineClient) -> None:
        """Take a place. Raises BusyError where there is none."""
        opening = self._opening
        self._engine = client.open_session(
            opening.prompt,
            opening.prompts.policy,
            dict(opening.policy),
            sampling=replace(client.default_sampling, seed=self._settings.seed),
            max_len=opening.max_len,
            max_units=IN_ENGINE,
            session_id=self.id,
            namespace=self.options.key,
            speech=opening.speech,
        )
        self._client = client
        self.opened_s = self.opened_s or self._clock.now()

    async def run(self) -> None:
        """From the place to the end."""
        error: SensoriumError | None = None
        try:
            error = await self._live(self._welcome)
            while self._outlives(error):
                self._lose_engine()
                if await self._find_engine():
                    error = await self._live(self._remind)
        except SensoriumError as failed:
            error = failed
        except Exception:
            log.exception("a live session failed")
            error = EngineDeadError("the session failed; the server's log has the details")
            if self._engine is not None:
                self._engine.abort()
        finally:
            self.close_with(self._reason or _reason(error), error if self._reason is None else None)

    async def _live(self, begin: Callable[[Session], Awaitable[None]]) -> SensoriumError | None:
        """To the end, or to the engine's; what it ended with. begin: what comes before the first unit."""
        engine, feeder = self._engine, None
        assert engine is not None
        error: SensoriumError | None = None
        try:
            await engine.aopened()
            await begin(engine)
            feeder = asyncio.create_task(self._feed())
            async for event in engine:
                error = self._narrator.take(event, engine.turn) or error
                self._room.set()
                if isinstance(event, UnitFailed) and event.code == ContextLengthError.code:
                    self._end_if_full()
                self._end_if_drained()
        except EngineError as failed:
            error = failed
            engine.abort()
        finally:
            if feeder is not None:
                feeder.cancel()
                await asyncio.wait((feeder,))
        return error

    async def _welcome(self, _: Session) -> None:
        self._started_s = self._heard_s = self._clock.now()
        self._tell(Opened(speech=self._opening.speech is not None))

    def close_with(self, reason: Reason, error: SensoriumError | None = None) -> None:
        """Tell the end, once."""
        if self._closed is None:
            self._backlog.clear()
            self.on_closed()
            self._metrics.ended(reason)
            self._closed = Closed(reason, self.usage, error)
            self._events.put_nowait(self._closed)

    def end(self, reason: Reason) -> None:
        """End at once: what is being said is not finished."""
        if self._reason is None and self._closed is None:
            self._reason = reason
            if self._engine is None:
                self.close_with(reason)
            else:
                self._engine.abort()

    def finish(self) -> None:
        """Hear nothing more; end when all that was heard has been answered."""
        self._is_finishing = True
        self._feeding.set()

    def _end_if_full(self) -> None:
        if self._settings.window == "off":
            self.end("context_full")

    def drain(self) -> None:
        """The server ends: go on until what is being said is finished, and then tell."""
        self._is_draining = True
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._is_draining and self._narrator.is_quiet:
            self.end("shutting_down")

    def tick(self, now_s: float) -> None:
        """Look at the times that have run out."""
        if self.opened_s is None or self._closed is not None:
            return
        limits, paused = self.limits, self._paused_s
        if self._detached_s is not None and now_s - self._detached_s >= limits.resume_s:
            self.end("lost")
        elif now_s - self._started_s >= limits.max_s:
            self.end("expired")
        elif paused is not None and now_s - paused >= self._pause_s:
            self.end("paused")
        elif paused is None and self._detached_s is None and now_s - self._heard_s >= limits.idle_s:
            self.end("idle")

    # ---- another engine --------------------------------------------------------------------------------------------

    def _outlives(self, error: SensoriumError | None) -> bool:
        is_lost = error is not None and error.code == "engine_restarted"
        return is_lost and self.limits.outlives_engine and not self.is_over and not self._is_draining

    def _lose_engine(self) -> None:
        self._backlog.put_back(self._narrator.lose_engine())
        self._metrics.restarted()
        self._tell(Restarted())

    async def _find_engine(self) -> bool:
        """Whether there is another one before the session ends. Raises EngineDeadError where there will be none."""
        last_s = self._clock.now() + RESTART_S
        while not (self.is_over or self._is_draining):
            try:
                client, self._opening = await self.reopen()
                self.begin(client)
            except (EngineDeadError, BusyError):
                state = "closed" if self._client is None else self._client.state
                if state in ("failed", "closed") or self._clock.now() > last_s:
                    raise
                await self._clock.sleep_until(self._clock.now() + RETRY_S)
            else:
                return True
        return False

    async def _remind(self, engine: Session) -> None:
        """Let a new engine hear what was heard last. It says nothing to that."""
        num_units = 0
        for unit in self._narrator.history.units():
            prompt, deciding = await self._made(unit)
            options = self._opening.prompts.unit_options(self._settings, force_listen=True, force_speak=False)
            due = self._clock.now() + UNIT_S
            num_units += 1
            try:
                await engine.arun(prompt, deadline_s=due, deciding=deciding, options=options)
            except EngineError as error:
                if error.code == "engine_restarted":
                    raise
                break  # it is full: what it has heard is enough
        self._narrator.begin_again(num_units)
        if self._paused_s is not None:
            engine.pause()

    # ---- what the client sends -------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether what is sent is heard."""
        ending = self._is_finishing or self._reason is not None or self._closed is not None
        return self.opened_s is not None and not ending

    @property
    def is_over(self) -> bool:
        return self._closed is not None or self._reason is not None

    @property
    def heard(self) -> int:
        """Samples heard, at 16 kHz."""
        return self._cutter.end

    @property
    def max_len(self) -> int:
        return self._opening.max_len

    @property
    def usage(self) -> Usage:
        told = self._narrator
        seconds = 0.0 if self.opened_s is None else self._clock.now() - self._started_s
        return Usage(seconds, told.units, told.late, told.spoken_units, self.heard, told.spoken_samples, self._played_s)

    def check_audio(self, samples: int) -> None:
        """Raises what send_audio would raise for so many samples."""
        if self.is_open:
            self._refuse_in_pause("audio")
            self._pace.check(samples, self._clock.now())

    def send_audio(self, pcm: np.ndarray) -> None:
        """Sound, int16 [n] at 16 kHz, of any length. Raises OverloadedError where it runs too far ahead."""
        now = self._clock.now()
        if not self.is_open or not len(pcm):
            return
        self._refuse_in_pause("audio")
        self._pace.take(len(pcm), now)
        self._heard_s = now
        for unit in self._cutter.hear(pcm, now):
            self._tell_superseded()
            late = self._backlog.put(unit)
            if late is not None:
                self._metrics.dropped(late.dropped_s, late.frames)
                self._tell(late)
            self._feeding.set()

    def send_frame(self, data: bytes) -> None:
        """A picture as a file. Of each unit the newest are used."""
        if self.is_open:
            self._refuse_in_pause("frame")
            dropped = self._cutter.see(data)
            self._metrics.superseded(dropped)
            self._num_superseded += dropped

    def _tell_superseded(self) -> None:
        """Once for a unit of far too many pictures; a camera that is a little fast is nothing to speak of."""
        if self._num_superseded > self._cutter.max_frames:
            self._tell(Late(frames=self._num_superseded))
        self._num_superseded = 0

    def send_text(self, text: str, place: str = "text") -> None:
        """Typed words, read with the next unit. place: the client's name for them."""
        if len(text) > MAX_TEXT:
            raise RequestError(f"{place}: at most {MAX_TEXT} characters", param=place)
        if self.is_open and text:
            self._refuse_in_pause(place)
            self._cutter.read(text)

    def force_listen(self) -> None:
        """The unit that is being filled listens; a turn ends with it."""
        self._cutter.force_listen()

    def force_speak(self) -> None:
        """The unit that is being filled speaks."""
        self._cutter.force_speak()

    def interrupt(self) -> None:
        """End what is being said, at once."""
        if self._engine is not None and self.is_open:
            self._engine.barge_in()
            self._narrator.interrupt()
            self._end_if_drained()

    def mute(self, on: bool) -> None:
        """What is heard meanwhile counts as silence."""
        self._cutter.muted = on
        self._tell(Muted(on))

    def pause(self, seconds: float | None = None) -> None:
        """Compute nothing until resume(), for so long at most."""
        if self._engine is not None and self.is_open:
            self._pause_s = self.limits.pause_s if seconds is None else min(max(seconds, 0.0), self.limits.pause_s)
            self._paused_s = self._clock.now()
            self._engine.pause()
            self._tell(Paused(True))

    def resume(self) -> None:
        if self._engine is not None and self.is_open and self._paused_s is not None:
            self._paused_s, self._heard_s = None, self._clock.now()
            self._engine.resume()
            self._tell(Paused(False))

    def update(self, settings: LiveSettings, max_frames: int, max_slices: int) -> None:
        """From the next unit on. What a session is opened with, its instructions, window and seed, stays."""
        kept = self._settings
        self._settings = replace(
            settings,
            instructions=kept.instructions,
            window=kept.window,
            seed=kept.seed,
            force_listen_units=kept.force_listen_units,
        )
        self._cutter.max_frames, self._max_slices = max_frames, max_slices

    @property
    def settings(self) -> LiveSettings:
        return self._settings

    @property
    def frames(self) -> tuple[int, int]:
        """Pictures used of a unit, and tiles of each."""
        return self._cutter.max_frames, self._max_slices

    @property
    def pause_s(self) -> float:
        """How long a pause may last that has begun."""
        return self._pause_s

    def played(self, seconds: float) -> None:
        """How much its client has played."""
        self._played_s = seconds

    def detach(self) -> None:
        """Its client is gone; it may be back."""
        self._detached_s = self._clock.now()

    def attach(self) -> None:
        self._detached_s, self._heard_s = None, self._clock.now()

    def _refuse_in_pause(self, what: str) -> None:
        if self._paused_s is not None:
            error = RequestError(f"{what}: the session is paused; resume it first", param=what)
            error.code = "paused"
            raise error

    # ---- out -------------------------------------------------------------------------------------------------------

    async def __aiter__(self) -> AsyncIterator[Event]:
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, Closed):
                return

    def _tell(self, event: Event) -> None:
        if self._closed is None:
            self._events.put_nowait(event)

    def tell(self, event: Event) -> None:
        """For the service: what is told while it waits."""
        self._tell(event)

    # ---- units to the engine ---------------------------------------------------------------------------------------

    async def _feed(self) -> None:
        engine = self._engine
        assert engine is not None
        with contextlib.suppress(EngineError):
            while True:
                self._feeding.clear()
                while len(self._backlog):
                    self._room.clear()
                    if engine.room <= 0:
                        await self._room.wait()
                        continue
                    await self._hand(engine, self._backlog.take())
                if self._is_finishing:
                    engine.close()
                    return
                await self._feeding.wait()

    async def _hand(self, engine: Session, unit: LiveUnit) -> None:
        """Make a unit ready and append it."""
        prompts, begun = self._opening.prompts, self._clock.now()
        try:
            prompt, deciding = await self._made(unit)
            now = self._clock.now()
            forced = {"force_listen": unit.force_listen, "force_speak": unit.force_speak}
            options = prompts.unit_options(self._settings, **forced)
            due = unit.heard_s + UNIT_S
            index = engine.append(prompt, deadline_s=due, deciding=deciding, options=options)
        except (EngineError, asyncio.CancelledError):
            self._backlog.put_back([unit])  # for another engine, if there will be one
            raise
        except SensoriumError as error:
            self._tell(Wrong(error))
            return
        self._narrator.handed(Handed(index, unit, now, now - begun))

    async def _made(self, unit: LiveUnit) -> tuple[Prompt, int]:
        frames = await self._prepared(unit.frames)
        return await asyncio.to_thread(self._opening.prompts.unit, unit.samples, frames, unit.texts)

    async def _prepared(self, files: list[bytes]) -> list[Prepared]:
        """Pictures as the model takes them; what is no picture is told and left out."""
        if not files or self._client is None:
            return []
        kwargs = self._opening.prompts.frame_options(self._max_slices)
        refs = [MediaRef("image", data, part="frame") for data in files]
        if self.options.stacks and len(files) > 1:
            refs = [MediaRef("video", frame_list.join(files), part="frame", options={"fps": len(files), "stack": True})]
        try:
            return await self._client.aprepare_media(refs, ChatOptions(media_kwargs=kwargs))
        except EngineDeadError:
            raise
        except SensoriumError as error:
            self._tell(Wrong(error))
            return []


def _reason(error: SensoriumError | None) -> Reason:
    if error is None:
        return "stopped"
    if error.code == "context_length_exceeded":
        return "context_full"
    if error.code in ("engine_dead", "engine_restarted"):
        return "engine_restarted"
    return "shutting_down" if error.code == "shutting_down" else "failed"
